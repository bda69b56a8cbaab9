"""Where the rows of a batch of steps lie, and what they see: integers to tensors.

Is        `Rows`: a column for every row of every step, and from it ids, positions, masks and places of what remains.
Flow      layout -> [step_rows] -> windows.py.
Change    how ragged steps are padded.
Not here  which steps -> layout/planner.py; the forward -> modeling/.
Holds     a row of a padded batch sees what it would see alone: padding is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultragist_rag.layout.planner import Step
from ultragist_rag.layout.slots import Ints

__all__ = ["Rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Columns of a batch: the lead token, if any, then the rows of each step, with padding.

    Attributes:
        steps: One step for each sequence.
        n_lead: 1 if a lead token stands in front, which sees itself alone.
        n_past: Padded number of past slots.
        columns: For each step, the columns of its rows.
        n_raw: Raw rows of the longest step, if all raw rows stand in front of all gists; None if they may mix.
    """

    steps: Sequence[Step]
    n_lead: int
    n_past: int
    columns: Sequence[Ints]
    n_raw: int | None = None

    @classmethod
    def packed(cls, steps: Sequence[Step], n_lead: int, n_past: int) -> Rows:
        """Let the rows of each step follow one another."""
        return cls(steps, n_lead, n_past, [n_lead + np.arange(len(step.rows)) for step in steps])

    @classmethod
    def apart(cls, steps: Sequence[Step], n_lead: int, n_past: int) -> Rows:
        """Let the gists of all steps begin at one column, behind all raw rows."""
        n_raw = max(int((~step.is_gist).sum()) for step in steps)
        columns = [
            n_lead + np.where(step.is_gist, n_raw + np.cumsum(step.is_gist), np.cumsum(~step.is_gist)) - 1
            for step in steps
        ]
        return cls(steps, n_lead, n_past, columns, n_raw)

    @property
    def n_columns(self) -> int:
        """Columns of the batch, padding included."""
        return max((int(columns.max()) + 1 for columns in self.columns if len(columns)), default=self.n_lead)

    @property
    def causal(self) -> bool:
        """Whether every raw row sees the whole past and the raw rows in front of it, and nothing else."""
        return self.n_raw is not None and all(len(step.past) == self.n_past and _is_causal(step) for step in self.steps)

    def tokens(self, offsets: Sequence[int]) -> tuple[Ints, Ints, Ints]:
        """Lay tokens out.

        Args:
            offsets: For each step, the token that stands first in its source.

        Returns:
            Places in the sources and positions, shape (batch, columns), and the flat places of gists.
        """
        ids = np.zeros((len(self.steps), self.n_columns), np.int64)
        positions = np.zeros_like(ids)
        is_gist = np.zeros(ids.shape, bool)
        for row, (step, columns, offset) in enumerate(zip(self.steps, self.columns, offsets, strict=True)):
            is_gist[row, columns] = step.is_gist
            ids[row, columns] = np.where(step.is_gist, 0, step.rows.start - offset)
            positions[row, columns] = step.positions + self.n_lead
        return ids, positions, np.flatnonzero(is_gist)

    def mask(self, first: int, device: torch.device) -> Tensor:
        """Say what each column from `first` on sees.

        Returns:
            Shape (batch, 1, columns - first, past + columns); padding sees itself alone.
        """
        chosen = [np.flatnonzero(columns >= first) for columns in self.columns]
        places = [columns[rows] - first for columns, rows in zip(self.columns, chosen, strict=True)]
        visible = self._visible(chosen, places, self.n_columns - first, device)
        visible.diagonal(self.n_past + first, 2, 3).fill_(True)
        return visible

    def mask_of(self, chosen: Sequence[Ints], device: torch.device) -> Tensor:
        """Say what some rows see.

        Args:
            chosen: For each step, numbers of rows.
            device: Where the mask belongs.

        Returns:
            Shape (batch, 1, most rows chosen, past + columns); padding sees the first column alone.
        """
        n_most = max(map(len, chosen))
        visible = self._visible(chosen, [np.arange(len(rows)) for rows in chosen], n_most, device)
        for row, rows in enumerate(chosen):
            visible[row, 0, len(rows) :, self.n_past] = True
        return visible

    def _visible(self, chosen: Sequence[Ints], places: Sequence[Ints], n_places: int, device: torch.device) -> Tensor:
        n_keys = self.n_past + self.n_columns
        always = np.zeros((len(self.steps), 1, n_keys), bool)
        is_gist = np.zeros_like(always)
        order = np.full(always.shape, -1, np.int32)
        active = np.zeros((len(self.steps), n_places, 1), bool)
        spans = np.zeros((4, len(self.steps), n_places, 1), np.int32)
        for index, (step, columns, rows, place) in enumerate(
            zip(self.steps, self.columns, chosen, places, strict=True)
        ):
            always[index, 0, : step.n_closed] = True
            always[index, 0, self.n_past : self.n_past + self.n_lead] = True
            gist = step.window_is_gist
            window = np.concatenate((np.arange(step.n_closed, len(step.past)), self.n_past + columns))
            is_gist[index, 0, window] = gist
            order[index, 0, window] = np.where(gist, np.cumsum(gist), np.cumsum(~gist)) - 1
            active[index, place] = True
            bounds = (step.spans.raw_from, step.spans.raw_to, step.spans.gist_from, step.spans.gist_to)
            spans[:, index, place, 0] = np.stack(bounds)[:, rows]
        always_, is_gist_, order_, active_ = (torch.from_numpy(a).to(device) for a in (always, is_gist, order, active))
        raw_from, raw_to, gist_from, gist_to = torch.from_numpy(spans).to(device)
        raw = (order_ >= raw_from) & (order_ < raw_to)
        gists = (order_ >= gist_from) & (order_ < gist_to)
        return (active_ & (always_ | torch.where(is_gist_, gists, raw)))[:, None]


def _is_causal(step: Step) -> bool:
    raw = ~step.is_gist
    n_cached = len(step.past) - step.n_closed
    spans = step.spans
    first = n_cached + np.arange(int(raw.sum())) + 1
    no_gists: NDArray[np.bool_] = spans.gist_from[raw] >= spans.gist_to[raw]
    return bool((spans.raw_from[raw] == 0).all() and (spans.raw_to[raw] == first).all() and no_gists.all())
