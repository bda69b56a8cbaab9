"""Hold gist memories against every other way to make a context smaller, on the same samples at equal bytes.

Is        paired differences of scores with 95 % intervals, and the lines that say who is above.
Flow      records, summary -> [compare] -> tables, page.
Change    which methods are held against each other, when bytes count as equal.
Holds     a method that is above gist memories is named, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ultragist_rag.evaluation.intervals import Interval, interval
from ultragist_rag.evaluation.records import Condition, Record, Run, TaskFacts
from ultragist_rag.evaluation.summary import conditions, score_sums

__all__ = ["Comparison", "comparison_lines", "comparisons"]

_EQUAL = 1.1
"""Bytes that differ by no more than this factor count as equal; slots cannot be cut finer on short contexts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Another method against gist memories on one task.

    Attributes:
        task: The task.
        other: The other method.
        ours: The gist memories that it is held against.
        n: Samples that both have answered.
        n_bytes: Mean bytes of keys and values of the other method.
        gist_bytes: Those of gist memories.
        gain: Score of the other method less that of gist memories; for perplexity the other way round, so that more
            than 0 always is better.
    """

    task: TaskFacts
    other: Condition
    ours: Condition
    n: int
    n_bytes: float
    gist_bytes: float
    gain: Interval

    @property
    def verdict(self) -> int:
        """1 if the other method is above, -1 if it is below, 0 if the interval holds both."""
        return int(self.gain[1] > 0) - int(self.gain[2] < 0)

    @property
    def is_equal(self) -> bool:
        """Whether both take as many bytes."""
        return max(self.n_bytes, self.gist_bytes) <= _EQUAL * min(self.n_bytes, self.gist_bytes)


@lru_cache(maxsize=4)
def comparisons(run: Run) -> tuple[Comparison, ...]:
    """Hold every method that makes a context smaller against `gist` at the same ratio or budget.

    Args:
        run: The run.

    Returns:
        One comparison per task, method, ratio and budget, where both have answered the same samples.

    Raises:
        InputError: If a record lacks the metric of its task.
    """
    found = []
    for name, of_task in conditions(run).items():
        for other, theirs in of_task.items():
            ours = Condition(method="gist", ratio=other.ratio, budget=other.budget)
            if other.is_ours or other.method in ("full", "closed") or ours not in of_task:
                continue
            both = [key for key, one in theirs.items() if not one.skipped and _scored(of_task[ours].get(key))]
            if both:
                rows = [theirs[key] for key in both], [of_task[ours][key] for key in both]
                found.append(_compare(run.tasks[name], other, ours, *rows))
    return tuple(found)


def comparison_lines(found: Sequence[Comparison]) -> list[str]:
    """Say in words what comparisons show: a count of all, and each method that is above gist memories.

    Args:
        found: The comparisons.

    Returns:
        Lines; none if there was nothing to compare.
    """
    if not found:
        return []
    n_above, n_below = (sum(one.verdict == sign for one in found) for sign in (1, -1))
    lines = [
        f"Of {len(found)} comparisons with gist memories on the same samples, the other method is above in {n_above}, "
        f"below in {n_below}, and the interval holds both in {len(found) - n_above - n_below}. By chance alone, one in "
        "40 would be above."
    ]
    lines += [_line(one) for one in found if one.verdict == 1]
    return lines


def _scored(record: Record | None) -> bool:
    return record is not None and not record.skipped


def _compare(
    task: TaskFacts, other: Condition, ours: Condition, theirs: Sequence[Record], gists: Sequence[Record]
) -> Comparison:
    score, reference = score_sums(task, theirs, gists)
    return Comparison(
        task=task,
        other=other,
        ours=ours,
        n=len(theirs),
        n_bytes=sum(record.n_bytes for record in theirs) / len(theirs),
        gist_bytes=sum(record.n_bytes for record in gists) / len(gists),
        gain=interval(reference - score if task.lower_is_better else score - reference),
    )


def _line(one: Comparison) -> str:
    value, low, high = one.gain
    where = f"ratio {one.other.ratio}" if one.other.budget is None else f"a budget of {one.other.budget / 1024:.1f} KiB"
    better = "better in perplexity than" if one.task.lower_is_better else "above"
    gist = f"gist memories ({one.gist_bytes / 1024:.1f} KiB, {where})"
    line = (
        f"At {one.n_bytes / 1024:.1f} KiB, {one.other.method} is {better} {gist} on {one.task.name} "
        f"by {value:.3f} (95 % {low:.3f} to {high:.3f}, {one.n} samples)."
    )
    return line if one.is_equal else f"{line} The bytes are not equal."
