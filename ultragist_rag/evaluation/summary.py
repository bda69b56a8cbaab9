"""Aggregate a run: scores and what is kept of the full text, with 95 % intervals, by task, method and ratio.

Is        pure functions of a `Run`: cells of tasks, cells of suites.
Flow      records, intervals -> [summary] -> tables, plots, page.
Paper     retention as in arXiv 2412.17483: score over the score of full attention, same base.
Change    what a cell says.
Not here  reading -> records.py; gist memories against other methods -> compare.py.
Holds     shares are over samples that both the method and the full text answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.intervals import NOTHING, Array, Interval, interval, ratio, sums
from ultragist_rag.evaluation.records import Condition, Record, Run, TaskFacts, read_run

__all__ = ["Cell", "SuiteCell", "cells", "conditions", "read_run", "score_sums", "suite_cells"]

FULL = Condition(method="full")
Sample = tuple[str, str]
"""Group and id."""

Scored = dict[Sample, Record]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One task, or one group of its samples, by one method.

    Attributes:
        task: The task.
        group: The group; empty for all samples of the task.
        condition: Method, ratio and budget.
        n: Samples with a score.
        n_skipped: Samples without.
        score: Mean of the task's metric, or perplexity.
        kept: Score over that of the full text (full perplexity over perplexity), on the same samples.
        n_kept: How many samples these are.
        n_tokens: Mean raw tokens of the context.
        slots: Mean cache slots of the context.
        n_bytes: Mean bytes of keys and values in these slots.
        compress_seconds: Mean time to make what is shown.
        first_token_seconds: Median time to the first token.
    """

    task: TaskFacts
    group: str
    condition: Condition
    n: int
    n_skipped: int
    score: Interval
    kept: Interval
    n_kept: int
    n_tokens: float
    slots: float
    n_bytes: float
    compress_seconds: float
    first_token_seconds: float

    @property
    def method(self) -> str:
        """How the context was shown."""
        return self.condition.method

    @property
    def ratio(self) -> int | None:
        """Raw tokens per gist; None for methods without."""
        return self.condition.ratio

    def to_dict(self) -> dict[str, object]:
        """The cell for JSON, flat; what was not measured is None."""
        plain: dict[str, object] = {"task": self.task.name, "metric": self.task.metric, "group": self.group}
        plain |= {"method": self.method, "ratio": self.ratio, "budget": self.condition.budget}
        numbers = {field.name: getattr(self, field.name) for field in fields(self)[3:]}
        return plain | {name: _known(value) for name, value in numbers.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteCell:
    """One suite by one method.

    Attributes:
        suite: The suite.
        condition: Method, ratio and budget.
        n_tasks: Tasks that the method and the full text both answered.
        n: Samples of these tasks that both answered.
        full_score: Mean score of the full text on them; NaN if perplexities are among them.
        kept: Mean score of the tasks over their mean full score; samples are drawn anew within each task.
    """

    suite: str
    condition: Condition
    n_tasks: int
    n: int
    full_score: float
    kept: Interval


@lru_cache(maxsize=4)
def cells(run: Run) -> tuple[Cell, ...]:
    """Aggregate the records of each task and group by method, ratio and budget.

    Args:
        run: The run.

    Returns:
        Cells by task in the order of the run; all samples first (group ``""``), then each group by itself.

    Raises:
        InputError: If a record lacks the metric of its task.
    """
    found = []
    by_task = conditions(run)
    for name, task in run.tasks.items():
        of_task = by_task.get(name, {})
        groups = sorted({record.group for record in run.records if record.task == name} - {""})
        for group in ("", *groups):
            full = _in_group(of_task.get(FULL, {}), group)
            for condition, records in of_task.items():
                chosen = _in_group(records, group)
                if chosen:
                    found.append(_cell(task, group, condition, chosen, full))
    return tuple(found)


@lru_cache(maxsize=4)
def suite_cells(run: Run) -> tuple[SuiteCell, ...]:
    """Aggregate what is kept over the tasks of each suite; a perplexity counts as its inverse.

    Args:
        run: The run.

    Returns:
        Cells by suite in the order of the run. Tasks weigh alike, however many samples they have.

    Raises:
        InputError: If a record lacks the metric of its task.
    """
    by_task = conditions(run)
    found = []
    for suite in dict.fromkeys(task.suite for task in run.tasks.values()):
        tasks = [task for task in run.tasks.values() if task.suite == suite]
        present = {condition for task in tasks for condition in by_task.get(task.name, {})}
        for condition in sorted(present, key=lambda one: one.order):
            cell = _suite_cell(suite, condition, tasks, by_task)
            if cell is not None:
                found.append(cell)
    return tuple(found)


def conditions(run: Run) -> dict[str, dict[Condition, Scored]]:
    """Sort records by task, by condition in the order of tables, and by sample."""
    found: dict[str, dict[Condition, Scored]] = {}
    for record in run.records:
        found.setdefault(record.task, {}).setdefault(record.condition, {})[record.group, record.id] = record
    return {
        name: {one: of_task[one] for one in sorted(of_task, key=lambda one: one.order)}
        for name, of_task in found.items()
    }


def score_sums(task: TaskFacts, *rows: Sequence[Record], seed: int | tuple[int, ...] = 0) -> list[Array]:
    """Compute the score of a task for several methods on the same samples, and on each of many resamples.

    Args:
        task: The task.
        rows: For each method its records, in the same order of samples, at least one.
        seed: Of the resampling.

    Returns:
        For each method the mean metric, or the perplexity; that of the samples themselves first, then of the resamples.

    Raises:
        InputError: If a record lacks the metric of the task.
    """
    if not task.lower_is_better:
        values = [np.array([_metric(task, record) for record in row]) for row in rows]
        *totals, count = sums(*values, np.ones(len(rows[0])), seed=seed)
        return [total / count for total in totals]
    weights = [np.array([record.scores.get("n", record.scores.get("tokens", 1.0)) for record in row]) for row in rows]
    nats = [np.array([_metric(task, record) for record in row]) for row in rows]
    drawn = sums(*(n * w for n, w in zip(nats, weights, strict=True)), *weights, seed=seed)
    above, below = drawn[: len(rows)], drawn[len(rows) :]
    return [np.exp(ratio(total, count)) for total, count in zip(above, below, strict=True)]


def _metric(task: TaskFacts, record: Record) -> float:
    name = "nll" if task.lower_is_better else task.metric
    if name not in record.scores:
        have = ", ".join(record.scores)
        raise InputError(
            f"sample {record.id!r} of {task.name} by {record.condition.method} has no {name!r}, but {have}. "
            "Run the evaluation again in a new folder."
        )
    return record.scores[name]


def _in_group(records: Scored, group: str) -> Scored:
    return {sample: record for sample, record in records.items() if group in ("", sample[0])}


def _scored(records: Scored) -> Scored:
    return {sample: record for sample, record in records.items() if not record.skipped}


def _pair(records: Scored, full: Scored) -> tuple[list[Record], list[Record]]:
    """Records of the samples that both have scored, in the same order."""
    both = [sample for sample in _scored(records) if sample in _scored(full)]
    return [records[sample] for sample in both], [full[sample] for sample in both]


def _cell(task: TaskFacts, group: str, condition: Condition, records: Scored, full: Scored) -> Cell:
    scored = list(_scored(records).values())
    ours, theirs = _pair(records, full)
    kept = NOTHING
    if ours:
        score, reference = score_sums(task, ours, theirs)
        kept = interval(ratio(reference, score) if task.lower_is_better else ratio(score, reference))
    return Cell(
        task=task,
        group=group,
        condition=condition,
        n=len(scored),
        n_skipped=len(records) - len(scored),
        score=interval(score_sums(task, scored)[0]) if scored else NOTHING,
        kept=kept,
        n_kept=len(ours),
        n_tokens=_mean([record.n_tokens for record in scored]),
        slots=_mean([record.slots for record in scored]),
        n_bytes=_mean([record.n_bytes for record in scored]),
        compress_seconds=_mean([record.seconds.get("compress", np.nan) for record in scored]),
        first_token_seconds=_median([record.seconds.get("first_token", np.nan) for record in scored]),
    )


def _suite_cell(
    suite: str, condition: Condition, tasks: Sequence[TaskFacts], by_task: Mapping[str, Mapping[Condition, Scored]]
) -> SuiteCell | None:
    scores, references, n, full_score = [], [], 0, 0.0
    for place, task in enumerate(tasks):
        of_task = by_task.get(task.name, {})
        ours, theirs = _pair(of_task.get(condition, {}), of_task.get(FULL, {}))
        if not ours:
            continue
        score, reference = score_sums(task, ours, theirs, seed=(0, place))
        if task.is_guessed(interval(reference)):
            continue  # full text itself does not do better than guessing
        scores.append(1 / score if task.lower_is_better else score)
        references.append(1 / reference if task.lower_is_better else reference)
        full_score += float("nan") if task.lower_is_better else float(reference[0])
        n += len(ours)
    if not scores:
        return None
    n_tasks = len(scores)
    kept = interval(ratio(np.mean(scores, axis=0), np.mean(references, axis=0)))
    return SuiteCell(suite=suite, condition=condition, n_tasks=n_tasks, n=n, full_score=full_score / n_tasks, kept=kept)


def _known(value: int | float | Interval) -> object:
    if isinstance(value, tuple):
        return None if np.isnan(value[0]) else list(value)
    return None if np.isnan(value) else value


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.median(known)) if known else float("nan")
