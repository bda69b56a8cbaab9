"""Choose a few samples of each task to show: what was said from the full text, and from memories.

Is        `Example`s picked from the records of a run, as plain text.
Flow      records -> [examples] -> page.
Change    which samples are shown, how long a prediction may be.
Holds     equal runs give equal examples; long predictions are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultragist_rag.evaluation.records import Condition, Record, Run
from ultragist_rag.evaluation.summary import FULL, conditions

__all__ = ["Example", "Said", "examples"]

_LONGEST = 400
_MEMORIES = 2


@dataclass(frozen=True, slots=True)
class Said:
    """One prediction, with what it was read from and its score."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """One sample: why it is shown, and what was said."""

    id: str
    why: str
    said: list[Said]


def examples(run: Run) -> list[tuple[str, list[Example]]]:
    """Pick a few samples of each task: one as good from memories as from the full text, one worse, and so on.

    Args:
        run: The run.

    Returns:
        Name of the task and its examples; tasks without predictions are left out.
    """
    found = []
    for name, of_task in conditions(run).items():
        metric = run.tasks[name].metric
        shown = [FULL, *_memories(list(of_task))] if FULL in of_task else []
        if len(shown) < 2 or run.tasks[name].kind == "perplexity":
            continue
        picked: dict[str, Example] = {}
        for sample in of_task[FULL]:
            rows = [of_task[one].get(sample) for one in shown]
            complete = [row for row in rows if row is not None and not row.skipped]
            if len(complete) == len(shown) and any(row.prediction for row in complete):
                example = _example(complete, metric)
                picked.setdefault(example.why, example)
        if picked:
            found.append((name, [picked[why] for why in sorted(picked)]))
    return found


def _memories(found: Sequence[Condition]) -> list[Condition]:
    """Plain gist memories of the lowest and the highest ratio; without any, what there is."""
    for choice in (
        [one for one in found if one.method == "gist"],
        [one for one in found if one.is_ours],
        [one for one in found if one not in (FULL, Condition(method="closed"))],
    ):
        if choice:
            return [choice[0], choice[-1]][: min(_MEMORIES, len(choice))]
    return []


def _example(rows: Sequence[Record], metric: str) -> Example:
    full, last = rows[0], rows[-1]
    before, after = (row.scores.get(metric, 0.0) for row in (full, last))
    why = "better from memories" if after > before else "worse from memories"
    if after == before:
        why = "as good from memories" if after else "wrong from both"
    return Example(full.id, why, [Said(_label(row, metric), _short(row.prediction) or "(nothing)") for row in rows])


def _short(text: str) -> str:
    return f"{text[:_LONGEST]} ..." if len(text) > _LONGEST else text


def _label(record: Record, metric: str) -> str:
    one = record.condition
    where = "full text" if one == FULL else one.method
    if one.ratio is not None:
        where = f"{where}, ratio {one.ratio}"
    return f"{where}: {metric} {record.scores.get(metric, float('nan')):.2f}"
