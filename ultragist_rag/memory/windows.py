"""Run one planned step for each of several sequences, in one forward of the model.

Is        the bridge from integers to tensors: masks, positions, one forward, and what remains of every memory.
Flow      layout, modeling -> [memory] -> compress.py, forward.py.
Change    how ragged sequences are batched.
Not here  which steps -> layout/planner.py and the two loops that use it.
Holds     a row of a padded batch sees what it would see alone: padding is hidden by a bool mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ultragist_rag.errors import ContextOverflowError
from ultragist_rag.layout.planner import Step
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.encode import encode, encode_soft
from ultragist_rag.types import BatchIds, Hidden, SoftRows

__all__ = ["KV", "check_positions", "keep_rows", "run_steps", "step_mask"]


@dataclass(frozen=True, slots=True, eq=False)
class KV:
    """Pre-RoPE keys and values of a batch, (batch, kv_heads, slots, head_dim) for each layer, padded at the end.

    Soft embeddings of recurrent memories take one layer of one head: keys hold their first half, values the second.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def map(self, change: object) -> KV:
        """Apply a function to every tensor."""
        return KV(tuple(change(k) for k in self.keys), tuple(change(v) for v in self.values))  # type: ignore[operator]

    @classmethod
    def of_embeddings(cls, soft: SoftRows) -> KV:
        """Hold soft embeddings."""
        keys, values = soft[:, None].chunk(2, dim=-1)
        return cls((keys,), (values,))

    @property
    def embeddings(self) -> SoftRows:
        """The soft embeddings that `of_embeddings` was given."""
        return torch.cat((self.keys[0], self.values[0]), dim=-1)[:, 0]

    @property
    def slots(self) -> int:
        """Padded number of slots."""
        return int(self.keys[0].shape[2])


def check_positions(attachment: Attachment, steps: Sequence[Step], n_lead: int) -> None:
    """Refuse steps that would run past the positions of the model.

    Args:
        attachment: The model.
        steps: One step for each sequence.
        n_lead: 1 if a lead token stands at position 0.

    Raises:
        ContextOverflowError: If a row would stand behind the last position.
    """
    highest = max((int(step.positions.max()) + 1 + n_lead for step in steps if len(step.positions)), default=0)
    if highest > attachment.n_positions:
        raise ContextOverflowError(
            f"memory and window need {highest} positions, but the model has {attachment.n_positions}. "
            "Use a higher ratio, a smaller window, or split the text into several memories."
        )


def run_steps(
    attachment: Attachment,
    steps: Sequence[Step],
    source: BatchIds,
    offsets: Sequence[int],
    kv: KV | None,
    lead: int | None,
) -> tuple[KV, Hidden]:
    """Run one step of each sequence.

    Args:
        attachment: The model; the caller holds its lock.
        steps: One step for each sequence.
        source: Token ids of each sequence, padded.
        offsets: For each sequence, the token that column 0 of `source` holds.
        kv: Keys and values in front, padded to the same number of slots; None if there are none.
        lead: Token at position 0 that only encodes itself and is seen by all rows; None for none.

    Returns:
        Keys and values (or soft embeddings, of a recurrent memory) of past and new rows, the row of the lead token left
        out, and the hidden states of the rows.
    """
    n_lead = int(lead is not None)
    check_positions(attachment, steps, n_lead)
    n_past = kv.slots if kv else 0
    n_rows = n_lead + max(len(step.rows) for step in steps)
    device = source.device
    ids, positions, rows = _rows(steps, offsets, n_lead, n_rows)
    ids_on_device = source.gather(1, torch.from_numpy(ids).to(device))
    if lead is not None:
        ids_on_device[:, 0] = lead
    in_front = torch.from_numpy(_past_positions(steps, n_past) + n_lead).to(device)
    places = torch.from_numpy(positions).to(device)
    visible = step_mask(steps, n_lead, n_past, n_rows, device)
    gist_rows = torch.from_numpy(rows).to(device) if len(rows) else None
    if attachment.config.memory == "recurrent":
        soft = kv.embeddings if kv else torch.empty((len(steps), 0, attachment.decoder.config.hidden_size))
        places = torch.cat((in_front.expand(len(steps), -1), places), dim=1)
        visible = _with_soft_rows(visible, n_past, n_lead)
        hidden = encode_soft(attachment, ids_on_device, soft, positions=places, visible=visible, gist_rows=gist_rows)[
            :, n_lead:
        ]
        return KV.of_embeddings(torch.cat((soft.to(hidden), hidden), dim=1)), hidden
    past = (kv.keys, kv.values, in_front) if kv else None
    encoded = encode(attachment, ids_on_device, positions=places, visible=visible, past=past, gist_rows=gist_rows)
    new = KV(tuple(encoded.keys), tuple(encoded.values)).map(lambda part: part[:, :, n_lead:])
    if kv is not None:
        pairs = ((kv.keys, new.keys), (kv.values, new.values))
        new = KV(*(tuple(torch.cat((p.to(n), n), 2) for p, n in zip(a, b, strict=True)) for a, b in pairs))
    return new, encoded.hidden[:, n_lead:]


def keep_rows(kv: KV, steps: Sequence[Step], n_past: int) -> KV:
    """Keep the slots that each step says remain.

    Args:
        kv: Keys and values of past and new rows, as `run_steps` returned them.
        steps: The steps that were run.
        n_past: Padded number of past slots that they were run with.

    Returns:
        Keys and values of the slots that remain, padded with copies of the first slot.
    """
    index = np.zeros((len(steps), max(len(step.keep) for step in steps)), np.int64)
    for row, step in zip(index, steps, strict=True):
        shift = n_past - len(step.past)
        row[: len(step.keep)] = step.keep + shift * (step.keep >= len(step.past))
    wide = torch.from_numpy(index).to(kv.keys[0].device)[:, None, :, None]
    return kv.map(lambda part: part.gather(2, wide.to(part.device).expand(-1, part.shape[1], -1, part.shape[3])))


def _rows(
    steps: Sequence[Step], offsets: Sequence[int], n_lead: int, n_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out source columns and positions of the rows, and the flat places of gists."""
    ids = np.zeros((len(steps), n_rows), np.int64)
    positions = np.zeros_like(ids)
    is_gist = np.zeros(ids.shape, bool)
    for index, (step, offset) in enumerate(zip(steps, offsets, strict=True)):
        place = slice(n_lead, n_lead + len(step.rows))
        is_gist[index, place] = step.is_gist
        ids[index, place] = np.where(step.is_gist, 0, step.rows.start - offset)
        positions[index, place] = step.positions + n_lead
    return ids, positions, np.flatnonzero(is_gist)


def _past_positions(steps: Sequence[Step], n_past: int) -> np.ndarray:
    """Lay out the positions of past slots: one row for all where each is 0, 1, 2, ..."""
    plain = np.arange(n_past)[None]
    own = [step.past_positions for step in steps]
    if all(p is None or (p == plain[0, : len(p)]).all() for p in own):
        return plain
    rows = plain.repeat(len(steps), 0)
    for row, positions in zip(rows, own, strict=True):
        if positions is not None:
            row[: len(positions)] = positions
    return rows


def step_mask(steps: Sequence[Step], n_lead: int, n_past: int, n_rows: int, device: torch.device) -> Tensor:
    """Build the bool mask (batch, 1, rows, past + rows) from the spans, for all sequences at once."""
    n_keys = n_past + n_rows
    always = np.zeros((len(steps), 1, n_keys), bool)
    is_gist = np.zeros((len(steps), 1, n_keys), bool)
    order = np.full((len(steps), 1, n_keys), -1, np.int32)
    active = np.zeros((len(steps), n_rows, 1), bool)
    spans = np.zeros((4, len(steps), n_rows, 1), np.int32)
    for index, step in enumerate(steps):
        always[index, 0, : step.n_closed] = True
        always[index, 0, n_past : n_past + n_lead] = True
        gist = step.window_is_gist
        first_new = n_past + n_lead
        place = np.r_[step.n_closed : len(step.past), first_new : first_new + len(step.rows)]
        is_gist[index, 0, place] = gist
        order[index, 0, place] = np.where(gist, np.cumsum(gist), np.cumsum(~gist)) - 1
        rows = slice(n_lead, n_lead + len(step.rows))
        active[index, rows] = True
        columns = (step.spans.raw_from, step.spans.raw_to, step.spans.gist_from, step.spans.gist_to)
        spans[:, index, rows, 0] = columns
    always_, is_gist_, order_, active_ = (torch.from_numpy(a).to(device) for a in (always, is_gist, order, active))
    raw_from, raw_to, gist_from, gist_to = torch.from_numpy(spans).to(device)
    raw = (order_ >= raw_from) & (order_ < raw_to)
    gists = (order_ >= gist_from) & (order_ < gist_to)
    visible = active_ & (always_ | torch.where(is_gist_, gists, raw))
    visible.diagonal(n_past, 1, 2).fill_(True)  # padding and the lead token see themselves alone
    return visible[:, None]


def _with_soft_rows(visible: Tensor, n_past: int, n_lead: int) -> Tensor:
    """Let each soft embedding in front see the lead token, those before it and itself; padding lies behind them."""
    soft = torch.ones((n_past, visible.shape[3]), dtype=torch.bool, device=visible.device).tril()
    soft[:, n_past : n_past + n_lead] = True
    return torch.cat((soft.expand(len(visible), 1, -1, -1), visible), dim=2)
