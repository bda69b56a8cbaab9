"""Say in plain words what a model cannot do, as far as a number shows it.

Is        sentences, each with the condition under which it holds.
Flow      bars -> [limits] -> card.
Change    add a limit: one function, and its name in `_LIMITS`.
Holds     a sentence with a number stands only where the number supports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ultragist_rag.evaluation.bars import UUID_FULL_TEXT
from ultragist_rag.evaluation.report import HELD

__all__ = ["limits"]

_GENERAL = (
    "English only; no reasoning, no safety training.",
    "Passages in other styles than those trained on are read worse; long answers may be cut or garbled.",
)
_LITTLE, _HALF = 0.1, 0.5

Measured = Mapping[str, Any]


def limits(measured: Measured, trained: Sequence[int]) -> list[str]:
    """List the limits.

    Args:
        measured: What `ultragist-rag bars --output` wrote.
        trained: Ratios that the model was trained at.

    Returns:
        Sentences, the general ones first.
    """
    found = [*_GENERAL, *(line for limit in _LIMITS for line in limit(measured))]
    ratios = {row["ratio"] for row in measured["countries"] if row["ratio"]} - set(trained)
    if ratios:
        found.append(f"Ratio {', '.join(map(str, sorted(ratios)))} was not trained.")
    return found


def _missed(measured: Measured) -> Iterator[str]:
    for plain, who in ((False, "It"), (True, "By plain decoding it")):
        missed = [bar["what"] for bar in measured["bars"] if bar["met"] is False and bar["plain"] is plain]
        if missed:
            yield f"{who} misses {len(missed)} of its bars: {'; '.join(missed)}."


def _closed_book(measured: Measured) -> Iterator[str]:
    scores = {row["task"]: row["exact_match"][0] for row in measured["countries"] if row["method"] == "closed"}
    if scores and max(scores.values()) < _LITTLE:
        shown = ", ".join(f"{score:.3f} on {task}" for task, score in scores.items())
        yield f"It knows nothing of the world: without documents it answers {shown}."


def _uuids(measured: Measured) -> Iterator[str]:
    full = _score(measured, "recall/uuid", "subem")
    if full is not None and full < UUID_FULL_TEXT:
        yield f"It cannot be relied on to copy UUIDs, not even from the text ({full:.3f})."


def _reading(measured: Measured) -> Iterator[str]:
    for task, name in (("rag/xquad", "XQuAD"), ("rag/policyqa", "PolicyQA")):
        full = _score(measured, task, "em")
        if full is not None and full < _HALF:
            yield f"General reading is weak: exact match on {name} is {full:.3f} from the full text."


def _wordings(measured: Measured) -> Iterator[str]:
    rows = measured["countries"]
    held = "full" + HELD
    by_default = held if held in {row["method"] for row in rows} else "full"
    for row in rows:
        if row["method"] == by_default and row["unseen"] and row["unseen"][2] < row["exact_match"][0]:
            yield (
                f"Questions in unseen wordings fail more often: {row['unseen'][0]:.3f} on {row['task']}, against "
                f"{row['exact_match'][0]:.3f} over all."
            )


def _score(measured: Measured, task: str, metric: str) -> float | None:
    """The full-text score on a task, if it was measured."""
    for row in measured["tasks"]:
        if (row["task"], row["metric"], row["method"]) == (task, metric, "full"):
            return float(row["score"][0])
    return None


_LIMITS: tuple[Callable[[Measured], Iterator[str]], ...] = (_missed, _closed_book, _uuids, _reading, _wordings)
