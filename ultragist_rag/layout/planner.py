"""Plan one step of a sequence: which rows run, where they stand, what they see, which slots remain.

Is        integer arithmetic: (window, ratio, GistConfig) in, `Step` out. No torch, so it is tested exhaustively.
Flow      config -> [layout] -> modeling -> memory. Imports config and its neighbours in layout only.
Paper     UltraGist, arXiv 2405.16635, section 3.2; legacy code: `Memory.step`.
Change    what remains of a window, where interleaved gists stand.
Not here  when a window begins and ends -> memory/compress.py (ours), layout/stream.py (the authors').
Holds     every token of a flushed window is condensed by exactly one gist or lies in the raw tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ultragist_rag.config import GistConfig
from ultragist_rag.layout.positions import append_positions, interleave_positions
from ultragist_rag.layout.slots import GIST, SINK, VERBATIM, Ints, SlotTable
from ultragist_rag.layout.visibility import Spans, append_spans, interleave_spans

__all__ = ["Step", "append_step", "even_reach", "flush_reach", "interleave_step", "interleaved_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One forward of one sequence.

    Attributes:
        past: Slots in front of the new rows: closed ones, then those of the open window.
        n_closed: How many of them are closed, that is, visible to every row.
        rows: The new rows, as slots.
        positions: Positions of the new rows.
        past_positions: Positions of the past; None for 0, 1, 2, ...
        spans: What the new rows see of the open window.
        keep: Places, in past and new rows, of the slots that remain.
        after: The slots that remain.
    """

    past: SlotTable
    n_closed: int
    rows: SlotTable
    positions: Ints
    spans: Spans
    keep: Ints
    after: SlotTable
    past_positions: Ints | None = None

    @property
    def is_gist(self) -> NDArray[np.bool_]:
        """For each new row, whether it is a gist."""
        return np.equal(self.rows.kind, GIST)

    @property
    def window_is_gist(self) -> NDArray[np.bool_]:
        """For each slot of the open window, past ones first, whether it holds a gist."""
        return np.equal(np.concatenate((self.past.kind[self.n_closed :], self.rows.kind)), GIST)


def flush_reach(n_tokens: int, ratio: int) -> Ints:
    """Give `ceil(n_tokens / ratio)` gists; each stands for `ratio` tokens, the last for the rest.

    Args:
        n_tokens: Raw tokens to condense.
        ratio: Raw tokens per gist.

    Returns:
        For each gist, the tokens up to its own last one.

    Example:
        >>> flush_reach(10, 4)
        array([ 4,  8, 10])
    """
    return np.minimum(np.arange(ratio, n_tokens + ratio, ratio), n_tokens)


def even_reach(stride: int, ratio: int, spread: bool = True) -> Ints:
    """Give the authors' `stride // ratio` gists at even steps; a rest may stay uncovered.

    Args:
        stride: Raw tokens to condense.
        ratio: Raw tokens per gist; 0 for no gists.
        spread: Whether gists are spaced evenly where the ratio does not divide the stride.

    Returns:
        For each gist, the tokens up to its own last one.

    Example:
        >>> even_reach(64, 24), even_reach(64, 24, spread=False)
        (array([32, 64]), array([24, 48]))
    """
    n_gists = stride // ratio if ratio else 0
    return np.arange(1, n_gists + 1) * (stride // n_gists if spread else ratio) if n_gists else np.zeros(0, np.int64)


def append_step(
    config: GistConfig, past: SlotTable, n_closed: int, tokens: tuple[int, int], reach: Ints, n_condensed: int | None
) -> Step:
    """Plan a step whose gists follow the raw tokens of the window.

    Args:
        config: The settings.
        past: Slots in front, those of the open window (all raw) last.
        n_closed: Closed slots among them.
        tokens: First new token, and the one behind the last.
        reach: For each gist, the window's tokens up to its own last one.
        n_condensed: Oldest tokens of the window that leave it; None if the window stays open and all slots remain.

    Returns:
        The step. With `n_condensed` but no gists the condensed tokens are kept verbatim (ratio 0).
    """
    n_cached = len(past) - n_closed
    n_raw = n_cached + tokens[1] - tokens[0]
    start = tokens[0] - n_cached
    step_length = int(reach[0]) if len(reach) else 0
    rows = SlotTable.tokens(*tokens).join(SlotTable.gists(start, reach, step_length))
    setting = (config.attention, config.attend_previous)
    positions = append_positions(*setting, n_closed, n_cached, n_raw, reach)
    spans = append_spans(*setting, n_cached, n_raw, reach)
    everything = past.join(rows)
    if n_condensed is None:
        return Step(past, n_closed, rows, positions, spans, np.arange(len(everything)), everything)
    window = n_closed + np.arange(n_raw)
    if len(reach):
        condensed, kind = n_closed + n_raw + np.arange(len(reach)), GIST
    else:
        condensed, kind = window[:n_condensed], VERBATIM
    keep, after = _close(config, everything, n_closed, window, (condensed, kind))
    rest = window[n_condensed:]
    keep, after = np.concatenate((keep, rest)), after.join(everything.take(rest))
    return Step(past, n_closed, rows, positions, spans, keep, after)


def interleave_step(
    config: GistConfig,
    past: SlotTable,
    n_closed: int,
    rows: SlotTable,
    closes: bool,
) -> Step:
    """Plan a step whose gists stand between the raw tokens of the window.

    Args:
        config: The settings.
        past: Slots in front, those of the open window last.
        n_closed: Closed slots among them.
        rows: New rows, from `interleaved_rows`.
        closes: Whether only the window's gists remain; else all slots do.

    Returns:
        The step.
    """
    everything = past.join(rows)
    window_is_gist = everything.kind[n_closed:] == GIST
    n_cached = len(past) - n_closed
    spans = interleave_spans(
        config.attention, window_is_gist, n_cached, (everything.stop - everything.start)[n_closed:]
    )
    in_window = interleave_positions(config.attention, n_closed, window_is_gist)
    past_positions = np.concatenate((np.arange(n_closed), in_window[:n_cached]))
    positions = in_window[n_cached:]
    keep, after = np.arange(len(everything)), everything
    if closes:
        window = n_closed + np.arange(len(window_is_gist))
        keep, after = _close(config, everything, n_closed, window, (window[window_is_gist], GIST))
    return Step(past, n_closed, rows, positions, spans, keep, after, past_positions)


def interleaved_rows(tokens: tuple[int, int], gist_after: NDArray[np.bool_], reach_back: Ints) -> SlotTable:
    """Put gists between tokens.

    Args:
        tokens: First new token, and the one behind the last.
        gist_after: For each new token, whether a gist follows it.
        reach_back: For each new token, the tokens that a gist behind it stands for.

    Returns:
        The rows, in order.
    """
    raw = SlotTable.tokens(*tokens)
    stop = raw.stop[gist_after]
    ratio = reach_back[gist_after]
    gists = SlotTable(np.full(len(stop), GIST), stop - ratio, stop, ratio)
    order = np.argsort(np.concatenate((2 * raw.start, 2 * (stop - 1) + 1)), kind="stable")
    return raw.join(gists).take(order)


def _close(
    config: GistConfig, everything: SlotTable, n_closed: int, window: Ints, condensed: tuple[Ints, int]
) -> tuple[Ints, SlotTable]:
    """Keep the closed slots and the condensed ones; the first window to close also leaves the sink in front."""
    closed = np.arange(n_closed)
    first = n_closed == 0
    sink = window[: config.sink] if first else window[:0]
    index, kind = condensed
    keep = np.concatenate((sink, closed, index))
    after = everything.take(sink).as_kind(SINK).join(everything.take(closed)).join(everything.take(index).as_kind(kind))
    return keep, after
