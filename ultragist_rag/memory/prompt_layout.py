"""Where the slots and tokens of a batch of prompts stand: columns, positions, and what each token sees.

Is        `Layout`, made of prompts by `lay_out`, and the mask that follows from it.
Flow      memory -> [prompt_layout] -> assembly, prompt, first_forward.
Change    where memories and tokens lie in the cache, what a token may see.
Not here  keys and values of the slots -> assembly.py; the forward -> prompt.py.
Holds     a token sees exactly the slots and tokens in front of it, in whatever order and batch they are laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.memory.memory import GistMemory

__all__ = ["NOWHERE", "SOFT", "Layout", "as_mask", "lay_out", "pad_left", "visible"]

NOWHERE = -1
"""Position of a padding column, and id of a cache column that holds no token."""

SOFT = -2
"""Id of the first soft embedding of a batch while it is laid out; the others count down from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Columns of a batch: first the slots of all memories, then the tokens, both padded on the left.

    The soft embeddings of recurrent memories are input rows, and stand among the tokens.
    """

    memories: tuple[GistMemory, ...]
    soft: tuple[GistMemory, ...]
    slot_index: Tensor  # (batch, slots): which slot of the memories, one behind the other; their number for padding
    slot_positions: Tensor  # (batch, slots)
    ids: Tensor  # (batch, tokens)
    positions: Tensor  # (batch, tokens)
    in_order: bool  # whether there is one prompt, with every slot of the memories once and in their order


def lay_out(prompts: list[list[Tensor | GistMemory]], device: torch.device) -> Layout:
    """Lay prompts out.

    Args:
        prompts: Token ids of shape (tokens,) and memories of each.
        device: Where the layout belongs.

    Returns:
        The layout; a memory that comes twice is listed once.
    """
    offsets: dict[int, int] = {}  # where the slots of each memory begin; a memory that comes twice is kept once
    memories: list[GistMemory] = []
    soft: list[GistMemory] = []
    columns: tuple[list[Tensor], ...] = ([], [], [], [])
    for prompt in prompts:
        parts: tuple[list[Tensor], ...] = ([], [], [], [])
        position = 0
        for piece in prompt:
            if isinstance(piece, GistMemory):
                recurrent = piece.config.memory == "recurrent"
                alike = soft if recurrent else memories
                if id(piece) not in offsets:
                    offsets[id(piece)] = _n_slots(alike)
                    alike.append(piece)
                entries = torch.arange(piece.slots) + offsets[id(piece)]
                entries, places = (SOFT - entries, parts[2:]) if recurrent else (entries, parts[:2])
            else:
                entries, places = piece.cpu(), parts[2:]
            places[0].append(entries)
            places[1].append(torch.arange(position, position + len(entries)))
            position += len(entries)
        for column, part in zip(columns, parts, strict=True):
            column.append(torch.cat(part) if part else torch.empty(0, dtype=torch.long))
    in_order = len(prompts) == 1 and torch.equal(columns[0][0], torch.arange(_n_slots(memories)))
    slot_index, slot_positions, ids, positions = (pad_left(column).to(device) for column in columns)
    return Layout(
        memories=tuple(memories),
        soft=tuple(soft),
        slot_index=torch.where(slot_index == NOWHERE, _n_slots(memories), slot_index),
        slot_positions=slot_positions,
        ids=ids,
        positions=positions,
        in_order=in_order,
    )


def _n_slots(memories: Sequence[GistMemory]) -> int:
    return sum(memory.slots for memory in memories)


def pad_left(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows of numbers, padded on the left with `NOWHERE`.

    Args:
        rows: At least one, each of shape (n,).

    Returns:
        Shape (rows, longest).
    """
    padded = torch.full((len(rows), max(map(len, rows))), NOWHERE, dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[len(target) - len(row) :] = row
    return padded


def visible(layout: Layout) -> Tensor:
    """What each token may attend to, shape (batch, 1, tokens, columns): everything in front of it, and itself.

    Padding is seen by nobody. A padding query sees itself alone: softmax over nothing would be NaN.
    """
    keys = torch.cat((layout.slot_positions, layout.positions), dim=1)
    queries = layout.positions[:, :, None]
    seen = (keys[:, None] <= queries) & (keys != NOWHERE)[:, None]
    itself = torch.eye(queries.shape[1], dtype=torch.bool, device=keys.device) & (queries == NOWHERE)
    seen[:, :, layout.slot_positions.shape[1] :] |= itself
    return seen[:, None]


def as_mask(model: Any, seen: Tensor) -> Tensor:
    """Give a bool mask as the attention function of the model takes it."""
    if model.config._attn_implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
