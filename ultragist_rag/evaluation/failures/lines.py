"""Read the lines of a run: scores by method, ratio and group.

Is        the one way in which plots, tables and advice look at lines.
Flow      metrics -> [lines] -> plots, tables, advice.
Change    which methods are shown.
Holds     lines without scores (skipped ones) count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ultragist_rag.evaluation.metrics import bootstrap, mean

__all__ = ["Cell", "Cells", "Line", "average", "cells", "label", "pooled", "spread_of"]

Line = Mapping[str, Any]
Cell = tuple[str, int | None]
"""Method and ratio."""

Cells = dict[Cell, dict[str, dict[str, float]]]
"""By method and ratio: by group: score of each id."""

_SHOWN = ("full", "gist")
_DRAWS = 400


def cells(rows: Iterable[Line], task: str, metric: str) -> Cells:
    """Sort scores of one task.

    Args:
        rows: Lines of a run; those of other tasks and of methods besides `full` and `gist` are passed over.
        task: Name of the task.
        metric: Which of its scores.

    Returns:
        Full text first, then gists by ratio; groups in the order of their names.
    """
    found: Cells = {}
    for row in rows:
        if row["task"] == task and row["method"] in _SHOWN and metric in row.get("scores", {}):
            groups = found.setdefault((row["method"], row["ratio"]), {})
            groups.setdefault(row.get("group", ""), {})[row["id"]] = float(row["scores"][metric])
    order = sorted(found, key=lambda cell: (cell[0] != "full", cell[1] or 0))
    return {cell: dict(sorted(found[cell].items())) for cell in order}


def pooled(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Score of each id, whatever its group."""
    return {name: score for group in groups.values() for name, score in group.items()}


def average(scores: Mapping[str, float]) -> float:
    """Mean of the scores; NaN if there is none."""
    return sum(scores.values()) / len(scores) if scores else float("nan")


def spread_of(scores: Mapping[str, float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval over samples."""
    return bootstrap(mean, np.array(list(scores.values())), draws=_DRAWS)


def label(cell: Cell) -> str:
    """Name a method and ratio in a legend."""
    method, ratio = cell
    if method == "full":
        return "full text"
    return "gists" if ratio is None else f"gists, {ratio} to 1"
