"""The tasks that come with the package: one file for each suite, each with a tuple `TASKS`."""

from __future__ import annotations

from ultragist_rag.evaluation.task import Task
from ultragist_rag.evaluation.tasks import chat, failures, long_qa, rag, rerank

__all__ = ["TASKS"]

TASKS: tuple[Task, ...] = (*rag.TASKS, *rerank.TASKS, *long_qa.TASKS, *chat.TASKS, *failures.TASKS)
