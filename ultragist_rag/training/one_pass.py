"""Documents, their gists and the questions behind them in one forward of the model, instead of a loop over windows.

Is        rows of all windows and of the prompt side by side, which attend in groups; keys that are seen from several
          places stand there once for each: where they were made, where later windows see them, where the prompt does.
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
from ultragist_rag.training.grouped import ALWAYS, GIST, NAME, Grouped, Groups, Member, group, register
from ultragist_rag.types import Part

__all__ = ["Document", "Layout", "OnePass", "Place", "can_lay_out", "lay_out", "run", "without_sink"]

_LATER, _SLOTS = 2**28, 2**29  # columns of later windows and of the prompt, before it is known how many there are
_WINDOW_SIZES, _PROMPT_SIZES = 4, 2  # calls of attention
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
        shown: Slots that are shown again, to later windows of their document and to the prompt, behind the rows: row
            and position; (2, batch, columns).
        n_later: How many of these columns are for later windows; the prompt's follow.
        groups: Which rows see which rows and columns.
        prompt: For each sequence, the rows of its raw tokens, lead token first, in reading order.
        places: Of all documents, in order.
    """

    ids: Part
    positions: Part
    gist_rows: Part
    shown: Part
    n_later: int
    groups: Groups
    prompt: tuple[Tensor, ...]
    places: tuple[Place, ...]


class _Rows:
    """Rows of one sequence in the making, one list for each attribute."""

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int64]] = []
        self.positions: list[NDArray[np.int64]] = []
        self.is_gist: list[NDArray[np.int64]] = []
        self.later: list[NDArray[np.int64]] = []
        self.slots: list[NDArray[np.int64]] = []
        self.prompt: list[NDArray[np.int64]] = []
        self.seen_at: list[NDArray[np.int64]] = []
        self.windows: list[Member] = []
        self.places: list[tuple[int, SlotTable]] = []
        self.n = self.n_later = self.n_slots = self.at = 0

    def add(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], is_gist: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Append rows; return their numbers."""
        self.ids.append(ids)
        self.positions.append(positions)
        self.is_gist.append(is_gist.astype(np.int64))
        self.n += len(ids)
        return np.arange(self.n - len(ids), self.n)

    def tokens(self, ids: Sequence[int]) -> None:
        """Raw tokens of the prompt."""
        positions = np.arange(self.at, self.at + len(ids))
        self.prompt.append(self.add(np.asarray(ids, np.int64), positions, np.zeros(len(ids), bool)))
        self.seen_at.append(positions)
        self.at += len(ids)

    def document(self, config: GistConfig, document: Document, n_lead: int) -> None:
        """All windows of a document; its slots then stand in the prompt."""
        course = Course(SlotTable.empty(), 0, 0, len(document.ids), document.ratios, np.array(document.chosen, int))
        ids = np.asarray(document.ids, np.int64)
        held = np.zeros(0, np.int64)
        first = self.n_later
        while not course.done:
            step = course.advance(config, flush=True)
            gist, spans = step.is_gist, step.spans
            new = self.add(np.where(gist, 0, ids[np.where(gist, 0, step.rows.start)]), step.positions + n_lead, gist)
            order = np.where(gist, np.cumsum(gist) - 1 + GIST, np.cumsum(~gist) - 1)
            always = np.concatenate((np.arange(n_lead), _LATER + np.arange(first, self.n_later)))
            self.windows.append(
                Member(
                    new,
                    np.stack((spans.raw_from, spans.raw_to, spans.gist_from + GIST, spans.gist_to + GIST)),
                    np.concatenate((always, new)),
                    np.concatenate((np.full_like(always, ALWAYS), order)),
                )
            )
            n_held = len(held)
            held = np.concatenate((held, new))[step.keep]
            if not course.done:
                fresh = held[n_held:]
                self.later.append(np.stack((fresh, np.arange(n_held, len(held)) + n_lead)))
                self.n_later += len(fresh)
        where = np.arange(self.at, self.at + len(held))
        self.slots.append(np.stack((held, where)))
        self.places.append((self.n_slots, course.table))
        self.n_slots += len(held)
        self.at += len(held)

    def turns(self) -> Member:
        """The prompt, whose rows see what stands in front of them."""
        rows, at = _join(self.prompt, ()), _join(self.seen_at, ())
        none = np.full_like(at, GIST)
        slots = _join(self.slots, (2,))
        return Member(
            rows,
            np.stack((np.zeros_like(at), at + 1, none, none)),
            np.concatenate((rows, _SLOTS + np.arange(self.n_slots))),
            np.concatenate((at, slots[1])),
        )


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
        rows.tokens([] if lead is None else [lead])
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
    n_rows = positions.shape[1]
    later = _stack([_join(rows.later, (2,)) for rows in sequences], 0)
    slots = _stack([_join(rows.slots, (2,)) for rows in sequences], 0)
    is_gist = _stack([_join(rows.is_gist, ()) for rows in sequences], 0)
    size = (n_rows, later.shape[2], slots.shape[2])
    windows = [_placed(one, number, size) for number, rows in enumerate(sequences) for one in rows.windows]
    turns = [_placed(rows.turns(), number, size) for number, rows in enumerate(sequences)]
    return Layout(
        ids=_stack([_join(rows.ids, ()) for rows in sequences], 0),
        positions=positions,
        gist_rows=torch.nonzero(is_gist.flatten()).flatten(),
        shown=torch.cat((later, slots), dim=2).transpose(0, 1).contiguous(),
        n_later=later.shape[2],
        groups=group([(windows, _WINDOW_SIZES), (turns, _PROMPT_SIZES)], n_rows * len(sequences)),
        prompt=tuple(torch.from_numpy(_join(rows.prompt, ())) for rows in sequences),
        places=tuple(
            Place(number, start, table) for number, rows in enumerate(sequences) for start, table in rows.places
        ),
    )


def _placed(one: Member, number: int, size: tuple[int, int, int]) -> Member:
    """A member of sequence `number` with flat places; `size` is the rows, later columns and slots of a sequence."""
    n_rows, n_later, _ = size
    columns = one.columns
    behind = np.where(columns >= _SLOTS, columns - _SLOTS + n_rows + n_later, columns - _LATER + n_rows)
    columns = np.where(columns >= _LATER, behind, columns) + number * sum(size)
    return one._replace(rows=one.rows + number * n_rows, columns=columns)


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
        self._index = layout.shown[0]
        self._cos_sin = model_cos_sin(attachment.model, layout.shown[1])

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
    register()
    window.attention = (NAME, {"gist_groups": Grouped(layout.groups, layout.groups.masks())})
    hidden = attachment.decoder(
        input_ids=layout.ids,
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=layout.ids.device),  # so that none is made
        position_ids=layout.positions,
        use_cache=False,
        gist_window=window,
    ).last_hidden_state
    if not with_slots:
        return OnePass(hidden, (), ())
    keys, values = (
        tuple(window.pick(part)[:, :, layout.n_later :] for part in parts if part is not None)
        for parts in (window.keys, window.values)
    )
    return OnePass(hidden, keys, values)


def without_sink(config: GistConfig, window: int | None, *, joint: bool) -> GistConfig:
    """Settings of a pass: another window perhaps, and no sink for independent documents."""
    size = config.window if window is None else window
    return replace(config, window=size, stride=size, sink=min(config.sink, size) if joint else 0)
