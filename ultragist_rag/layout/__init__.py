"""Integers only: how a sequence is cut, how many gists it gets, what they see and where they stand."""
