"""The tasks that come with the package: one file for each suite, each with a tuple `TASKS`."""

from __future__ import annotations

from ultragist_rag.evaluation.task import Task
from ultragist_rag.evaluation.tasks import (
    chat,
    code,
    failures,
    icl,
    long_qa,
    perplexity,
    rag,
    recall,
    rerank,
    summary,
)

__all__ = ["TASKS"]

_SUITES = (rag, rerank, long_qa, icl, recall, summary, code, perplexity, chat, failures)

TASKS: tuple[Task, ...] = tuple(task for suite in _SUITES for task in suite.TASKS)
