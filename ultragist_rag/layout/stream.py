"""Cut one growing sequence into steps, as the authors' code does.

Is        integer arithmetic: a cursor and the length so far in, one `Step` and the next cursor out. No torch.
Flow      config -> [layout] -> modeling -> memory.
Paper     UltraGist, arXiv 2405.16635, section 3; Activation Beacon, arXiv 2401.03462; legacy code: `Memory.step`.
Change    when a window counts as full.
Not here  flushed windows, which the authors do not have -> memory/compress.py.
Holds     a sequence fed in pieces takes the same steps as one fed at once, but for windows that a piece leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ultragist_rag.config import GistConfig
from ultragist_rag.layout.planner import Step, append_step, even_reach, interleave_step, interleaved_rows
from ultragist_rag.layout.ratios import RatioState, choose_ratio
from ultragist_rag.layout.slots import SINK, VERBATIM, SlotTable

__all__ = ["Cursor", "Situation", "n_open", "next_step"]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a sequence stands.

    Attributes:
        table: Its slots.
        tokens: Tokens seen.
        window_start: First token of the open window.
        phase: Raw tokens since the last interleaved gist.
        ratios: What it remembers of its ratios.
    """

    table: SlotTable = field(default_factory=SlotTable.empty)
    tokens: int = 0
    window_start: int = 0
    phase: int = 0
    ratios: RatioState = field(default_factory=RatioState)


@dataclass(frozen=True, slots=True)
class Situation:
    """What holds for all steps of one call.

    Attributes:
        total: Tokens known at the end of the call.
        n_positions: Positions of the model, for `adapt`.
        training: Whether the last window is left raw, even if full.
        generator: For random ratios.
    """

    total: int
    n_positions: int
    training: bool = False
    generator: np.random.Generator | None = None


def n_open(table: SlotTable, window_start: int) -> int:
    """Count the slots of the open window: the last ones, whose tokens it holds.

    Args:
        table: Slots of a sequence.
        window_start: First token of its open window.

    Returns:
        The number of slots.
    """
    closed = np.flatnonzero((table.stop <= window_start) | (table.kind == SINK))
    return len(table) - (int(closed[-1]) + 1 if len(closed) else 0)


def next_step(config: GistConfig, cursor: Cursor, situation: Situation) -> tuple[Step, Cursor]:
    """Plan the next step of a sequence.

    Args:
        config: The settings.
        cursor: Where the sequence stands; some tokens must be left.
        situation: What holds for the call.

    Returns:
        The step, and where the sequence stands behind it.
    """
    end = min(cursor.window_start + config.window, situation.total)
    full = end == cursor.window_start + config.window and not (situation.training and end == situation.total)
    plan = _interleave if config.placement == "interleave" else _append
    step, behind = plan(config, cursor, situation, (cursor.tokens, end), full)
    start = cursor.window_start + config.n_stride if full else cursor.window_start
    return step, replace(behind, table=step.after, tokens=end, window_start=start)


def _append(
    config: GistConfig, cursor: Cursor, situation: Situation, tokens: tuple[int, int], full: bool
) -> tuple[Step, Cursor]:
    n_closed = len(cursor.table) - n_open(cursor.table, cursor.window_start)
    if not full:
        return append_step(config, cursor.table, n_closed, tokens, even_reach(0, 0), None), cursor
    ratio, ratios = _choose(config, cursor, situation)
    reach = even_reach(config.n_stride, ratio, config.even_spread)
    step = append_step(config, cursor.table, n_closed, tokens, reach, config.n_stride)
    return step, replace(cursor, ratios=ratios)


def _interleave(
    config: GistConfig, cursor: Cursor, situation: Situation, tokens: tuple[int, int], full: bool
) -> tuple[Step, Cursor]:
    n_closed = len(cursor.table) - n_open(cursor.table, cursor.window_start)
    n_new = tokens[1] - tokens[0]
    if situation.training and tokens[1] == situation.total:
        rows = interleaved_rows(tokens, np.zeros(n_new, bool), np.zeros(n_new, np.int64))
        return interleave_step(config, cursor.table, n_closed, rows, False), cursor
    ratio, ratios = cursor.ratios.open, cursor.ratios
    if tokens[0] == cursor.window_start or ratio is None:
        ratio, ratios = _choose(config, cursor, situation)
        ratios = replace(ratios, open=ratio)
    count = cursor.phase + np.arange(1, n_new + 1)
    rows = interleaved_rows(tokens, count % ratio == 0, np.full(n_new, ratio))
    step = interleave_step(config, cursor.table, n_closed, rows, full)
    return step, replace(cursor, ratios=ratios, phase=int(count[-1]) % ratio)


def _choose(config: GistConfig, cursor: Cursor, situation: Situation) -> tuple[int, RatioState]:
    kept_raw = bool(((cursor.table.kind == VERBATIM) & (cursor.table.ratio == 0)).any())
    more_follows = cursor.window_start + config.n_stride + config.window <= situation.total
    return choose_ratio(
        config,
        cursor.ratios,
        allow_zero=not situation.training or (more_follows and not kept_raw),
        n_tokens=situation.total,
        n_positions=situation.n_positions,
        generator=situation.generator,
    )
