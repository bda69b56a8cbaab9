"""Where rows stand: the RoPE positions of one window.

Is        integer arithmetic. No torch.
Flow      config -> [layout] -> modeling -> memory.
Paper     UltraGist, arXiv 2405.16635, section 3.2; ALGORITHM of the authors' `get_position_ids`.
Change    how gists are placed among the positions.
Not here  slots in front of the window: they stand at 0, 1, 2, ... and are packed anew at every step.
Holds     raw tokens are never moved to make room for appended gists, so both may share a position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ultragist_rag.config import Attention
from ultragist_rag.layout.slots import Ints

__all__ = ["append_positions", "interleave_positions"]


def append_positions(
    attention: Attention, attend_previous: bool, base: int, n_cached: int, n_raw: int, reach: Ints
) -> Ints:
    """Give the positions of the new raw rows of a window, then of its appended gists.

    Args:
        attention: What gists see.
        attend_previous: Whether gists see the gists before them.
        base: Slots in front of the window.
        n_cached: Raw tokens of the window that were encoded before.
        n_raw: Raw tokens of the window, the cached ones included.
        reach: For each gist, the window's raw tokens up to its own last one.

    Returns:
        One position for each row.
    """
    rank = np.arange(len(reach))
    if attention == "full-coverage":
        gists = base + n_raw + rank
    elif attention == "step-expansion" and attend_previous:
        gists = base + reach + rank
    else:
        gists = base + reach
    return np.concatenate((base + np.arange(n_cached, n_raw), gists))


def interleave_positions(attention: Attention, base: int, is_gist: NDArray[np.bool_]) -> Ints:
    """Give the positions of a window whose gists stand between its raw tokens.

    Args:
        attention: With `full-coverage` rows simply follow each other and gists use up positions; otherwise raw tokens
            stand where they would stand without gists, and a gist shares the position of the token behind it.
        base: Slots in front of the window.
        is_gist: For each place of the window, cached ones included, whether it holds a gist.

    Returns:
        One position for each place.
    """
    if attention == "full-coverage":
        return base + np.arange(len(is_gist))
    return base + np.cumsum(~is_gist) - ~is_gist
