"""What lies in the slots of one sequence: kind, source tokens and ratio of every slot.

Is        SlotTable, four integer arrays that are cut and joined exactly like the tensors they describe.
Flow      config -> [layout] -> modeling -> memory. No torch.
Change    what is known about a slot.
Not here  segments, the run-length form that a memory shows -> memory/segments.py.
Holds     `table.take(index)` describes `tensor[..., index, :]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GIST", "RAW", "SINK", "VERBATIM", "Ints", "SlotTable"]

Ints = NDArray[np.int64]

SINK, GIST, VERBATIM, RAW = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, eq=False)
class SlotTable:
    """Kind, first source token, source token behind the last, and ratio (0 if none) of every slot."""

    kind: Ints
    start: Ints
    stop: Ints
    ratio: Ints

    def __len__(self) -> int:
        """Count the slots."""
        return len(self.kind)

    @classmethod
    def empty(cls) -> SlotTable:
        """Return a table without slots."""
        return cls(*(np.zeros(0, np.int64) for _ in range(4)))

    @classmethod
    def tokens(cls, start: int, stop: int) -> SlotTable:
        """Return one raw slot for each of the tokens `start` to `stop`."""
        source = np.arange(start, stop)
        return cls(np.full(len(source), RAW), source, source + 1, np.zeros(len(source), np.int64))

    @classmethod
    def gists(cls, start: int, reach: Ints, ratio: int) -> SlotTable:
        """Return gist slots; the one before `reach[j]` ends where the next begins, all counted from `start`."""
        stops = start + reach
        starts = np.concatenate(([start], stops[:-1])) if len(reach) else stops
        return cls(np.full(len(reach), GIST), starts, stops, np.full(len(reach), ratio))

    def take(self, index: Ints) -> SlotTable:
        """Return the slots at these places, in this order."""
        return SlotTable(self.kind[index], self.start[index], self.stop[index], self.ratio[index])

    def join(self, other: SlotTable) -> SlotTable:
        """Return these slots followed by the others."""
        pairs = ((self.kind, other.kind), (self.start, other.start), (self.stop, other.stop), (self.ratio, other.ratio))
        return SlotTable(*(np.concatenate(pair) for pair in pairs))

    def as_kind(self, kind: int) -> SlotTable:
        """Return the slots relabelled."""
        return SlotTable(np.full(len(self), kind), self.start, self.stop, self.ratio)
