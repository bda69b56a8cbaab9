"""Run one planned step for each of several sequences, in one forward of the model.

Is        one forward, and what remains of every memory.
Flow      layout, modeling -> [memory] -> compress.py, forward.py.
Change    what a step is run with.
Not here  which steps -> layout/planner.py and the two loops that use it; masks and padding -> step_rows.py.
Holds     a row of a padded batch sees what it would see alone: padding is hidden by a bool mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ultragist_rag.errors import ContextOverflowError
from ultragist_rag.fast import is_fast
from ultragist_rag.layout.planner import Step
from ultragist_rag.layout.slots import Ints
from ultragist_rag.memory.step_rows import Rows
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.encode import encode, encode_soft
from ultragist_rag.modeling.kept import encode_kept
from ultragist_rag.modeling.split import Split
from ultragist_rag.types import BatchIds, Hidden, SoftRows

__all__ = ["KV", "check_positions", "keep_rows", "remaining", "run_steps"]


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
    rows = Rows.packed(steps, int(lead is not None), kv.slots if kv else 0)
    laid = _lay_out(attachment, rows, source, offsets, lead)
    visible, n_lead = rows.mask(0, source.device), rows.n_lead
    if attachment.config.memory == "recurrent":
        soft = kv.embeddings if kv else torch.empty((len(steps), 0, attachment.decoder.config.hidden_size))
        places = torch.cat((laid.in_front.expand(len(steps), -1), laid.positions), dim=1)
        visible = _with_soft_rows(visible, rows.n_past, n_lead)
        hidden = encode_soft(attachment, laid.ids, soft, positions=places, visible=visible, gist_rows=laid.gist_rows)[
            :, n_lead:
        ]
        return KV.of_embeddings(torch.cat((soft.to(hidden), hidden), dim=1)), hidden
    past = (kv.keys, kv.values, laid.in_front) if kv else None
    encoded = encode(
        attachment, laid.ids, positions=laid.positions, visible=visible, past=past, gist_rows=laid.gist_rows
    )
    new = KV(tuple(encoded.keys), tuple(encoded.values)).map(lambda part: part[:, :, n_lead:])
    return new if kv is None else _joined(kv, new), encoded.hidden[:, n_lead:]


def remaining(
    attachment: Attachment,
    steps: Sequence[Step],
    source: BatchIds,
    offsets: Sequence[int],
    kv: KV | None,
    lead: int | None,
) -> KV:
    """Run one step of each sequence, and keep the slots that each says remain.

    Args:
        attachment: The model; the caller holds its lock.
        steps: As for `run_steps`, like all the others.
        source: Token ids.
        offsets: First token of each sequence.
        kv: Keys and values in front.
        lead: Token at position 0.

    Returns:
        Keys and values of the slots that remain, padded with copies of other slots.
    """
    if not _drops_most(attachment, steps):
        everything, _ = run_steps(attachment, steps, source, offsets, kv, lead)
        return keep_rows(everything, steps, kv.slots if kv else 0)
    n_lead, n_past, device = int(lead is not None), kv.slots if kv else 0, source.device
    rows = Rows.apart(steps, n_lead, n_past) if is_fast("split-attention") else Rows.packed(steps, n_lead, n_past)
    if rows.n_raw is not None and not rows.causal:
        rows = Rows.packed(steps, n_lead, n_past)
    laid = _lay_out(attachment, rows, source, offsets, lead)
    visible: Tensor | Split = rows.mask(0, device) if rows.n_raw is None else _split(rows, device)
    chosen = [_kept_rows(step) for step in steps]
    kept = _padded([columns[one] for columns, one in zip(rows.columns, chosen, strict=True)])
    is_gist = _padded([step.is_gist[one].astype(np.int64) for step, one in zip(steps, chosen, strict=True)])
    keys, values = encode_kept(
        attachment,
        laid.ids,
        positions=laid.positions,
        visible=visible,
        kept=kept.to(device),
        kept_visible=rows.mask_of(chosen, device),
        past=(kv.keys, kv.values, laid.in_front) if kv else None,
        gists=laid.gists,
        kept_gists=is_gist.flatten().nonzero()[:, 0].to(device),  # found here: on a GPU it would be waited for
    )
    new = KV(tuple(keys), tuple(values))
    places = [_places_among(one, step, n_past) for one, step in zip(chosen, steps, strict=True)]
    return _gather(new if kv is None else _joined(kv, new), places)


def _drops_most(attachment: Attachment, steps: Sequence[Step]) -> bool:
    """Tell whether the rows of a batch are run for some of them alone."""
    if torch.is_grad_enabled() or attachment.model.training or not is_fast("kept-rows"):
        return False
    n_rows = max(len(step.rows) for step in steps)
    n_kept = max(int((step.keep >= len(step.past)).sum()) for step in steps)
    return 0 < 2 * n_kept <= n_rows and any(step.is_gist.any() for step in steps) and attachment.runs_kept


def _split(rows: Rows, device: torch.device) -> Split:
    n_causal = rows.n_lead + (rows.n_raw or 0)
    return Split(n_causal, bool(rows.n_lead), rows.mask(n_causal, device))


def _padded(rows: Sequence[Ints]) -> Tensor:
    """Stack rows of different lengths, padded with zeros."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def _kept_rows(step: Step) -> Ints:
    """Numbers of the rows that remain, each once: a gist among the first rows may be kept as a sink, too."""
    return np.unique(step.keep[step.keep >= len(step.past)] - len(step.past))


def _places_among(kept: Ints, step: Step, n_past: int) -> Ints:
    """Places of the slots that remain, where the new rows are the kept ones, one behind the other."""
    rows = step.keep - len(step.past)
    return np.where(rows >= 0, n_past + np.searchsorted(kept, rows), step.keep)


def keep_rows(kv: KV, steps: Sequence[Step], n_past: int) -> KV:
    """Keep the slots that each step says remain.

    Args:
        kv: Keys and values of past and new rows, as `run_steps` returned them.
        steps: The steps that were run.
        n_past: Padded number of past slots that they were run with.

    Returns:
        Keys and values of the slots that remain, padded with copies of the first slot.
    """
    return _gather(kv, [step.keep + (n_past - len(step.past)) * (step.keep >= len(step.past)) for step in steps])


def _gather(kv: KV, places: Sequence[Ints]) -> KV:
    wide = _padded(places).to(kv.keys[0].device)[:, None, :, None]
    return kv.map(lambda part: part.gather(2, wide.to(part.device).expand(-1, part.shape[1], -1, part.shape[3])))


def _joined(past: KV, new: KV) -> KV:
    pairs = ((past.keys, new.keys), (past.values, new.values))
    return KV(*(tuple(torch.cat((p.to(n), n), 2) for p, n in zip(a, b, strict=True)) for a, b in pairs))


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """What a batch of rows is run with."""

    ids: Tensor
    positions: Tensor
    in_front: Tensor
    gists: Tensor

    @property
    def gist_rows(self) -> Tensor | None:
        """Places of gists; None if there are none."""
        return self.gists if len(self.gists) else None


def _lay_out(attachment: Attachment, rows: Rows, source: BatchIds, offsets: Sequence[int], lead: int | None) -> _Laid:
    check_positions(attachment, rows.steps, rows.n_lead)
    ids, positions, gists = rows.tokens(offsets)
    laid = source.gather(1, torch.from_numpy(ids).to(source.device))
    if lead is not None:
        laid[:, 0] = lead
    in_front = _past_positions(rows.steps, rows.n_past) + rows.n_lead
    arrays = (positions, in_front, gists)
    places, past, flat = (torch.from_numpy(array).to(source.device) for array in arrays)
    return _Laid(laid, places, past, flat)


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


def _with_soft_rows(visible: Tensor, n_past: int, n_lead: int) -> Tensor:
    """Let each soft embedding in front see the lead token, those before it and itself; padding lies behind them."""
    soft = torch.ones((n_past, visible.shape[3]), dtype=torch.bool, device=visible.device).tril()
    soft[:, n_past : n_past + n_lead] = True
    return torch.cat((soft.expand(len(visible), 1, -1, -1), visible), dim=2)
