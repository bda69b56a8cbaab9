"""Documents, their gists and the questions behind them in one forward of the model, instead of a loop over windows.

Is        rows of all windows and of the prompt side by side, with a mask; keys that are seen from several places stand
          there once for each: where they were made, where later windows see them, where the prompt does.
Flow      layout, modeling, batches -> [one_pass] -> loop.
Paper     UltraGist, arXiv 2405.16635, section 3.2; the single pass is ours.
Change    which rows and columns a batch has.
Not here  what is drawn for a batch -> objectives.py; the loop that serves answers -> memory/compress.py.
Holds     loss and gradients are those of the loop: a row sees the same keys at the same distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ContextOverflowError, TrainingError
from ultragist_rag.layout.course import Course
from ultragist_rag.layout.slots import SlotTable
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.segments import segments_of
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.rope import model_cos_sin, rotate
from ultragist_rag.modeling.window import Window
from ultragist_rag.types import Part

__all__ = ["Document", "Layout", "OnePass", "Place", "can_lay_out", "lay_out", "run", "without_sink"]

_NEVER = 2**30  # a prompt position behind all others
_MULTIPLE = 8  # columns are padded to this, which attention kernels like


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is compressed: its ids, a ratio for each window, the tokens it keeps verbatim."""

    ids: tuple[int, ...]
    ratios: Sequence[int]
    chosen: tuple[int, ...] = ()


Pieces = Sequence[Document | Sequence[int]]
"""A prompt behind the lead token: documents that are compressed, and token ids that stay."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document's slots are: its sequence in the batch, its columns there, and what they hold."""

    sequence: int
    start: int
    table: SlotTable


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Rows and columns of a batch, as integers.

    Attributes:
        ids: Token ids, (batch, rows).
        positions: RoPE positions, (batch, rows).
        gist_rows: Flat places of gists among batch * rows.
        own: What rows are and see, (11, batch, rows); see `_Rows`.
        later: Slots that later windows of their document see: row, position, document, window; (4, batch, columns).
        slots: Slots that the prompt sees: row, position; (2, batch, columns).
        prompt: For each sequence, the rows of its raw tokens, lead token first, in reading order.
        places: Of all documents, in order.
    """

    ids: Part
    positions: Part
    gist_rows: Part
    own: Part
    later: Part
    slots: Part
    prompt: tuple[Tensor, ...]
    places: tuple[Place, ...]


class _Rows:
    """Rows of one sequence in the making, one list for each attribute."""

    NAMES = (
        *("group", "is_gist", "order", "raw_from", "raw_to", "gist_from", "gist_to", "document", "window"),
        *("prompt", "is_lead"),
    )

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.own: list[NDArray[np.int64]] = []
        self.later: list[NDArray[np.int64]] = []
        self.slots: list[NDArray[np.int64]] = []
        self.prompt: list[NDArray[np.int64]] = []
        self.places: list[tuple[int, SlotTable]] = []
        self.n = self.n_slots = self.n_groups = self.at = 0

    def add(self, ids: NDArray[np.int64], positions: NDArray[np.int64], **own: Any) -> NDArray[np.int64]:
        """Append rows; return their numbers. Attributes that are not named say that a row takes no part."""
        default = {"group": -1, "document": -1, "prompt": -1}
        self.ids.append(ids)
        self.positions.append(positions)
        block = [np.broadcast_to(own.get(name, default.get(name, 0)), ids.shape) for name in self.NAMES]
        self.own.append(np.stack(block))
        self.n += len(ids)
        return np.arange(self.n - len(ids), self.n)

    def tokens(self, ids: Sequence[int], *, lead: bool = False) -> None:
        """Raw tokens of the prompt."""
        positions = np.arange(self.at, self.at + len(ids))
        rows = self.add(np.asarray(ids, np.int64), positions, prompt=positions, is_lead=int(lead))
        self.prompt.append(rows)
        self.at += len(ids)

    def document(self, config: GistConfig, document: Document, n_lead: int) -> None:
        """All windows of a document; its slots then stand in the prompt."""
        course = Course(SlotTable.empty(), 0, 0, len(document.ids), document.ratios, np.array(document.chosen, int))
        ids = np.asarray(document.ids, np.int64)
        number = len(self.places)
        held = np.zeros(0, np.int64)
        window = 0
        while not course.done:
            step = course.advance(config, flush=True)
            gist = step.is_gist
            new = self.add(
                np.where(gist, 0, ids[np.where(gist, 0, step.rows.start)]),
                step.positions + n_lead,
                group=self.n_groups,
                is_gist=gist,
                order=np.where(gist, np.cumsum(gist), np.cumsum(~gist)) - 1,
                raw_from=step.spans.raw_from,
                raw_to=step.spans.raw_to,
                gist_from=step.spans.gist_from,
                gist_to=step.spans.gist_to,
                document=number,
                window=window,
            )
            n_held = len(held)
            held = np.concatenate((held, new))[step.keep]
            if not course.done:
                fresh = held[n_held:]
                where = np.arange(n_held, len(held)) + n_lead
                self.later.append(np.stack((fresh, where, np.full_like(fresh, number), np.full_like(fresh, window))))
            window += 1
            self.n_groups += 1
        self.slots.append(np.stack((held, np.arange(self.at, self.at + len(held)))))
        self.places.append((self.n_slots, course.table))
        self.n_slots += len(held)
        self.at += len(held)


def can_lay_out(config: GistConfig) -> bool:
    """Whether windows of these settings can run side by side: none has tokens or hidden states of the one before."""
    return config.n_stride == config.window and config.memory == "kv"


def lay_out(config: GistConfig, prompts: Sequence[Pieces], lead: int | None, *, n_positions: int) -> Layout:
    """Plan the rows of a batch of prompts.

    Args:
        config: The settings; with a sink for one joint stream, without for independent documents.
        prompts: Pieces of each prompt behind the lead token.
        lead: Token at position 0 of every document and of the prompt, or None.
        n_positions: Positions of the model.

    Returns:
        The layout, on the CPU.

    Raises:
        TrainingError: If windows overlap (stride below window).
        ContextOverflowError: If a row would stand behind the last position.
    """
    if not can_lay_out(config):
        raise TrainingError(
            f"stride {config.stride} below window {config.window}, or memory {config.memory!r}, needs the loop over "
            "windows. Set one_pass: false."
        )
    sequences = []
    for prompt in prompts:
        rows = _Rows()
        rows.tokens([] if lead is None else [lead], lead=True)
        for piece in prompt:
            if isinstance(piece, Document):
                rows.document(config, piece, int(lead is not None))
            else:
                rows.tokens(piece)
        sequences.append(rows)
    positions = _stack([_join(rows.positions, ()) for rows in sequences], 0)
    highest = int(positions.max()) + 1
    if highest > n_positions:
        raise ContextOverflowError(f"a prompt needs {highest} positions, but the model has {n_positions}.")
    own = _stack([_join(rows.own, (len(_Rows.NAMES),)) for rows in sequences], -1)
    flat = _stack([_join([part[1] for part in rows.own], ()) for rows in sequences], 0)
    return Layout(
        ids=_stack([_join(rows.ids, ()) for rows in sequences], 0),
        positions=positions,
        gist_rows=torch.nonzero(flat.flatten() == 1).flatten(),
        own=own.transpose(0, 1).contiguous().to(torch.int32),
        later=_stack([_join(rows.later, (4,)) for rows in sequences], -2).transpose(0, 1).contiguous(),
        slots=_stack([_join(rows.slots, (2,)) for rows in sequences], _NEVER).transpose(0, 1).contiguous(),
        prompt=tuple(torch.from_numpy(_join(rows.prompt, ())) for rows in sequences),
        places=tuple(
            Place(number, start, table) for number, rows in enumerate(sequences) for start, table in rows.places
        ),
    )


def _join(parts: Sequence[NDArray[np.int64]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros((*shape, 0), np.int64), *parts], axis=-1)


def _stack(rows: Sequence[NDArray[np.int64]], blank: int) -> Tensor:
    """Pad the last axis of every array to one length, a multiple of eight."""
    longest = max(row.shape[-1] for row in rows)
    longest += -longest % _MULTIPLE
    out = np.full((len(rows), *rows[0].shape[:-1], longest), blank, np.int64)
    for place, row in zip(out, rows, strict=True):
        place[..., : row.shape[-1]] = row
    return torch.from_numpy(out)


# --- the forward --------------------------------------------------------------------------------------------------


class _Columns(Window):
    """Stands in for a cache that shows slots again: rotated to where later windows and the prompt see them."""

    def __init__(self, attachment: Attachment, layout: Layout) -> None:
        super().__init__(attachment.n_layers, layout.gist_rows if len(layout.gist_rows) else None, ((), ()))
        index = torch.cat((layout.later[0], layout.slots[0]), dim=1)
        positions = torch.cat((layout.later[1], layout.slots[1]), dim=1)
        blank = (index < 0) | (index >= _NEVER)
        self._index = index.masked_fill(blank, 0)
        self._cos_sin = model_cos_sin(attachment.model, positions.masked_fill(blank, 0))

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put the shown slots behind the rows' own keys and values."""
        raw_keys, raw_values = self.keys[layer], self.values[layer]
        assert raw_keys is not None
        assert raw_values is not None
        cos, sin = self._cos_sin
        shown = rotate(self.pick(raw_keys).to(cos.dtype), cos, sin)
        return (
            torch.cat((keys, shown.to(keys.dtype)), dim=2),
            torch.cat((values, self.pick(raw_values).to(values.dtype)), dim=2),
        )

    def pick(self, rows: Tensor) -> Tensor:
        """Gather the shown slots out of rows of shape (batch, kv_heads, rows, head_dim)."""
        index = self._index.to(rows.device)[:, None, :, None]
        return rows.gather(2, index.expand(-1, rows.shape[1], -1, rows.shape[3]))

    def get_seq_length(self, *_: Any) -> int:
        """Nothing stands in front."""
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class OnePass:
    """What a forward gives: hidden states of all rows, (batch, rows, hidden), and the keys and values of its slots."""

    hidden: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def memories(self, layout: Layout, config: GistConfig) -> list[GistMemory]:
        """The memory of every document, as `compress_ids` makes it, without progress; gradients flow."""
        made = []
        for place in layout.places:
            span = slice(place.start, place.start + len(place.table))
            keys, values = (
                tuple(part[place.sequence : place.sequence + 1, :, span] for part in parts)
                for parts in (self.keys, self.values)
            )
            made.append(GistMemory(keys=keys, values=values, segments=segments_of(place.table), config=config))
        return made


def run(attachment: Attachment, layout: Layout, *, with_slots: bool = False) -> OnePass:
    """Run a batch.

    Args:
        attachment: The model; the caller holds its lock.
        layout: From `lay_out`, on the device of the model.
        with_slots: Whether keys (before RoPE) and values of all slots are wanted, too.

    Returns:
        Hidden states, behind the final norm, and slots of (batch, kv_heads, slots, head_dim) for each layer.
    """
    window = _Columns(attachment, layout)
    config = attachment.model.config
    mask = visible(layout)[:, None]
    chosen = config._attn_implementation
    if chosen == "eager":
        dtype = attachment.dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    else:
        config._attn_implementation = "sdpa"
    try:
        hidden = attachment.decoder(
            input_ids=layout.ids,
            attention_mask=mask,
            position_ids=layout.positions,
            use_cache=False,
            gist_window=window,
        ).last_hidden_state
    finally:
        config._attn_implementation = chosen
    if not with_slots:
        return OnePass(hidden, (), ())
    n_later = layout.later.shape[2]
    keys, values = (
        tuple(window.pick(part)[:, :, n_later:] for part in parts if part is not None)
        for parts in (window.keys, window.values)
    )
    return OnePass(hidden, keys, values)


def visible(layout: Layout) -> Tensor:
    """What each row sees of rows, of slots in front of its window, of the prompt's slots: (batch, rows, columns)."""
    own = dict(zip(_Rows.NAMES, layout.own, strict=True))
    row = {name: part[:, :, None] for name, part in own.items()}
    key = {name: part[:, None] for name, part in own.items()}
    raw = (key["order"] >= row["raw_from"]) & (key["order"] < row["raw_to"])
    gists = (key["order"] >= row["gist_from"]) & (key["order"] < row["gist_to"])
    in_window = (row["group"] == key["group"]) & (row["group"] >= 0) & torch.where(key["is_gist"] == 1, gists, raw)
    in_prompt = (key["prompt"] >= 0) & (key["prompt"] <= row["prompt"])
    lead = (key["is_lead"] == 1) & (row["group"] >= 0)
    rows = in_window | in_prompt | lead
    rows.diagonal(0, 1, 2).fill_(True)  # padding sees itself alone
    _, _, document, window = (part[:, None] for part in layout.later)
    later = (row["document"] == document) & (window < row["window"]) & (document >= 0)
    slots = layout.slots[1][:, None] <= row["prompt"]
    return torch.cat((rows, later, slots), dim=2)


def without_sink(config: GistConfig, window: int | None, *, joint: bool) -> GistConfig:
    """Settings of a pass: another window perhaps, and no sink for independent documents."""
    size = config.window if window is None else window
    return replace(config, window=size, stride=size, sink=min(config.sink, size) if joint else 0)
