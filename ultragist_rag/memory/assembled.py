"""Keep what was assembled for recent prompts, for prompts over the same memories at the same places.

Is        `Assembled`, a bounded store of rotated slots; the one that was not used for longest goes first.
Flow      memory, prompt_layout, assembly -> [assembled] -> beginning -> engine.
Change    what counts as the same.
Not here  how slots are rotated -> assembly.py; memories on disk -> store/.
Holds     it gives what assembling again would give, and keeps no memory alive. The caller holds the model's lock.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt_layout import Layout

__all__ = ["Assembled"]

Slots = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Entry:
    memories: tuple[weakref.ref[GistMemory], ...]
    slots: Slots
    nbytes: int


class Assembled:
    """Rotated slots of recent prompts.

    Args:
        max_bytes: Bytes that they may take together, on the device of the model; 0 keeps none.

    Attributes:
        max_bytes: As given.
        nbytes: Bytes that they take.
        hits: Prompts whose slots were there.
        misses: Prompts whose slots were not.

    Raises:
        InputError: If `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        """Begin empty."""
        if max_bytes < 0:
            raise InputError(f"max_bytes is {max_bytes}, but must be a number of bytes, 0 for none.")
        self.max_bytes = max_bytes
        self.nbytes = self.hits = self.misses = 0
        self._entries: OrderedDict[object, _Entry] = OrderedDict()

    def slots(self, layout: Layout, dtype: torch.dtype, assemble: Callable[[], Slots]) -> Slots:
        """Return the slots of a layout, from here or made now.

        Args:
            layout: Of the prompts.
            dtype: Number format of the model.
            assemble: Makes them.

        Returns:
            For each layer, rotated keys and values; not to be written to.
        """
        if not self.max_bytes:
            self._entries.clear()
            self.nbytes = 0
        if not self.max_bytes or not layout.memories:
            return assemble()
        places = (layout.slot_index, layout.slot_positions)
        numbers = tuple(part.cpu().numpy().tobytes() for part in places)
        key = (tuple(map(id, layout.memories)), layout.slot_index.shape, layout.slot_index.device, dtype, *numbers)
        entry = self._entries.get(key)
        if entry and all(ref() is memory for ref, memory in zip(entry.memories, layout.memories, strict=True)):
            self.hits += 1
            self._entries.move_to_end(key)
            return entry.slots
        self.misses += 1
        self._drop(key)
        slots = assemble()
        nbytes = sum(part.numel() * part.element_size() for pair in slots for part in pair)
        if nbytes <= self.max_bytes:
            self._entries[key] = _Entry(tuple(map(weakref.ref, layout.memories)), slots, nbytes)
            self.nbytes += nbytes
        while self.nbytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
        return slots

    def _drop(self, key: object) -> None:
        entry = self._entries.pop(key, None)
        self.nbytes -= entry.nbytes if entry else 0
