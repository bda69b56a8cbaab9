"""What a row may see of its own window.

Is        four integers for each row: the raw tokens and the gists of the window that it attends to. No torch.
Flow      config -> [layout] -> modeling -> memory.
Paper     UltraGist, arXiv 2405.16635, section 3.2; the authors' `ultragist_attn` / `beacon_attn`.
Change    a new attention pattern: one branch in `append_spans` or `interleave_spans`.
Not here  slots in front of the window, which every row sees -> memory/windows.py; positions -> positions.py.
Holds     every row sees itself; a raw token sees no later token and, appended, no gist of its window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultragist_rag.config import Attention
from ultragist_rag.layout.slots import Ints

__all__ = ["Spans", "append_spans", "interleave_spans"]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """For each row, the window's raw tokens `raw_from:raw_to` and gists `gist_from:gist_to` that it sees."""

    raw_from: Ints
    raw_to: Ints
    gist_from: Ints
    gist_to: Ints


def append_spans(attention: Attention, attend_previous: bool, n_cached: int, n_raw: int, reach: Ints) -> Spans:
    """Give the spans of a window whose gists follow its raw tokens.

    Args:
        attention: What gists see.
        attend_previous: Whether gists see the gists before them (step-expansion only).
        n_cached: Raw tokens of the window that were encoded before; they have no rows.
        n_raw: Raw tokens of the window, the cached ones included.
        reach: For each gist, the window's raw tokens up to its own last one.

    Returns:
        Spans of the new raw rows, then of the gists.
    """
    rank = np.arange(len(reach))
    raw_to = reach
    raw_from, gist_from = np.zeros_like(rank), np.zeros_like(rank)
    if attention == "full-coverage":
        raw_to = np.full_like(rank, n_raw)
    elif attention == "segmentation":
        raw_from = np.concatenate(([0], reach[:-1])) if len(reach) else raw_from
        gist_from = rank
    elif not attend_previous:
        gist_from = rank
    raw = np.arange(n_cached, n_raw)
    none = np.zeros_like(raw)
    return Spans(
        np.concatenate((none, raw_from)),
        np.concatenate((raw + 1, raw_to)),
        np.concatenate((none, gist_from)),
        np.concatenate((none, rank + 1)),
    )


def interleave_spans(attention: Attention, is_gist: NDArray[np.bool_], n_cached: int, reach_back: Ints) -> Spans:
    """Give the spans of a window whose gists stand between its raw tokens.

    Args:
        attention: `full-coverage` is plain causal; otherwise only the gist itself sees a gist of the open window.
        is_gist: For each place of the window, cached ones first, whether it holds a gist.
        n_cached: Places that were encoded before; they have no rows.
        reach_back: For each place, the raw tokens its gist stands for (used by segmentation).

    Returns:
        Spans of the new rows.
    """
    raw_to: Ints = np.cumsum(~is_gist, dtype=np.int64)
    gist_to: Ints = np.cumsum(is_gist, dtype=np.int64)
    zero = np.zeros_like(raw_to)
    gist_from: Ints = zero if attention == "full-coverage" else np.where(is_gist, gist_to - 1, gist_to)
    raw_from: Ints = np.where(is_gist, np.maximum(raw_to - reach_back, 0), 0) if attention == "segmentation" else zero
    return Spans(raw_from[n_cached:], raw_to[n_cached:], gist_from[n_cached:], gist_to[n_cached:])
