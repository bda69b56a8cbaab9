"""Evaluation: what a checkpoint answers from memories, held against the full text."""
