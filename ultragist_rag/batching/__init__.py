"""A queue for many callers at once: their prompts are decoded side by side."""

from ultragist_rag.batching.queue import BatchQueue, BatchStats

__all__ = ["BatchQueue", "BatchStats"]
