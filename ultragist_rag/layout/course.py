"""Cut one document into steps, flushing its last window, and count the slots that remain.

Is        integer arithmetic: a `Course` that gives one `Step` after the other. No torch.
Flow      config -> [layout] -> memory/compress.py. The authors' stream is the other course -> stream.py.
Paper     UltraGist, arXiv 2405.16635, section 3; flushing, verbatim tokens and slot budgets are ours.
Change    when a window begins and ends, which ratio fits a budget.
Not here  one step -> planner.py; the forward of a step -> memory/windows.py.
Holds     the slots counted for a ratio are the slots that compressing at this ratio leaves.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.layout.planner import Step, append_step, flush_reach, interleave_step, interleaved_rows
from ultragist_rag.layout.slots import GIST, RAW, SINK, VERBATIM, Ints, SlotTable

__all__ = ["Course", "count_slots", "fitting_ratio", "keep_verbatim"]


def _none() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(slots=True, eq=False)
class Course:
    """Where one document stands on its way through the windows.

    Attributes:
        table: Its slots.
        window_start: First token of the open window.
        end: Tokens encoded so far.
        stop: Tokens of the document.
        ratios: A ratio for each window; the last one repeats.
        chosen: Tokens that are kept verbatim.
        n_windows: Windows behind it.
        n_provisional: Gists of the open window.
    """

    table: SlotTable
    window_start: int
    end: int
    stop: int
    ratios: Sequence[int]
    chosen: Ints = field(default_factory=_none)
    n_windows: int = 0
    n_provisional: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to encode."""
        return self.end >= self.stop

    def advance(self, config: GistConfig, flush: bool) -> Step:
        """Plan the next step and move behind it.

        Args:
            config: The settings.
            flush: Whether an open window is condensed, too.

        Returns:
            The step.
        """
        ratio = self.ratios[min(self.n_windows, len(self.ratios) - 1)]
        full = self.window_start + config.window <= self.stop
        end = self.window_start + config.window if full else self.stop
        condensed = self.window_start + config.n_stride if full else end
        step = self._plan(config, ratio, (self.end, end), flush=flush, full=full)
        step = keep_verbatim(step, self.chosen[self.chosen < condensed])
        self.n_provisional = int(step.is_gist.sum()) if flush and not full else 0
        self.n_windows += 1
        self.table = step.after
        if full:
            self.window_start += config.n_stride
        # Flushed windows that overlap (stride < window) are encoded afresh, so that any cut gives the same memory.
        self.end = self.window_start if flush and full else end
        return step

    def _plan(self, config: GistConfig, ratio: int, tokens: tuple[int, int], *, flush: bool, full: bool) -> Step:
        n_window = tokens[1] - self.window_start
        n_closed = len(self.table) - int((self.table.stop > self.window_start)[self.table.kind != SINK].sum())
        closes = flush or full
        if config.placement == "interleave":
            place = np.arange(tokens[0], tokens[1]) - self.window_start + 1
            last = (place == n_window) & closes
            reach_back = np.where(place % ratio == 0, ratio, place % ratio)
            rows = interleaved_rows(tokens, (place % ratio == 0) | last, reach_back)
            return interleave_step(config, self.table, n_closed, rows, closes)
        reach = flush_reach(config.n_stride if full else n_window if flush else 0, ratio)
        n_condensed = n_window if flush else config.n_stride if full else None
        return append_step(config, self.table, n_closed, tokens, reach, n_condensed)


def keep_verbatim(step: Step, chosen: Ints) -> Step:
    """Let chosen tokens that would leave the window remain, each before the gist that covers it.

    Args:
        step: Any step; one that leaves its window open keeps all tokens anyway.
        chosen: Tokens to keep.

    Returns:
        The step with verbatim slots among those that remain, sorted by the tokens they end with.
    """
    everything = step.past.join(step.rows)
    raw = (everything.kind == RAW) & np.isin(everything.start, chosen)
    places = np.setdiff1d(np.flatnonzero(raw), step.keep)
    if not len(places):
        return step
    keep = np.concatenate((step.keep, places))
    after = step.after.join(everything.take(places).as_kind(VERBATIM))
    n_head = int(((step.keep < step.n_closed) | (step.after.kind == SINK)).sum())
    order = np.lexsort((after.kind[n_head:] == GIST, after.stop[n_head:])) + n_head
    order = np.concatenate((np.arange(n_head), order))
    return replace(step, keep=keep[order], after=after.take(order))


def count_slots(config: GistConfig, course: Course, ratio: int, flush: bool) -> int:
    """Count the slots that a document will have, all kinds together.

    Args:
        config: The settings.
        course: Where the document stands; it is not changed.
        ratio: Raw tokens per gist, for all windows to come.
        flush: Whether an open window is condensed, too.

    Returns:
        Slots.
    """
    trial = replace(course, ratios=[ratio])
    while not trial.done:
        trial.advance(config, flush)
    return len(trial.table)


def fitting_ratio(config: GistConfig, course: Course, slots: int, flush: bool) -> int:
    """Find the lowest ratio at which a document fits a number of slots.

    Args:
        config: The settings.
        course: Where the document stands, with the lowest ratio that may be taken; it is not changed.
        slots: Slots that its memory may have, all kinds together.
        flush: Whether an open window is condensed, too.

    Returns:
        The ratio; beyond `window` it saves nothing.

    Raises:
        InputError: If the document does not fit at any ratio, or has several ratios already.
    """
    if len(course.ratios) != 1:
        raise InputError(
            f"ratios are {list(course.ratios)} and slots is {slots}: a budget chooses one ratio for all windows, so "
            "give at most one, as the lowest."
        )
    steps = range(course.ratios[0], max(course.ratios[0], config.window) + 1)
    place = bisect_left(steps, -slots, key=lambda ratio: -count_slots(config, course, ratio, flush))
    if place == len(steps):
        least = count_slots(config, course, steps[-1], flush)
        raise InputError(
            f"the memory takes at least {least} slots (ratio {steps[-1]}), but slots is {slots}. Raise slots to "
            f"{least}, keep less verbatim, or split the text."
        )
    return steps[place]
