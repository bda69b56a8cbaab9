"""Turn a slot table into the segments that a memory shows, and back.

Is        run-length coding of slots.
Flow      layout, memory.py -> [memory] -> compress.py, forward.py.
Change    when neighbouring slots count as one segment.
Holds     `table_of(segments_of(table))` is the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ultragist_rag.layout.slots import GIST, RAW, SINK, VERBATIM, SlotTable
from ultragist_rag.memory.memory import Segment, SegmentKind

__all__ = ["segments_of", "table_of"]

_NAMES: dict[int, SegmentKind] = {SINK: "sink", GIST: "gist", VERBATIM: "verbatim", RAW: "raw"}
_CODES = {name: code for code, name in _NAMES.items()}


def segments_of(table: SlotTable) -> tuple[Segment, ...]:
    """Join neighbouring slots of one kind and ratio whose tokens follow each other.

    Args:
        table: The slots.

    Returns:
        Segments that cover them. A gist that stands for fewer tokens than its ratio ends its segment.
    """
    n = len(table)
    if not n:
        return ()
    length = np.where(table.kind == GIST, table.ratio, 1)
    short = table.stop - table.start != length
    joined = (
        (table.kind[1:] == table.kind[:-1])
        & (table.ratio[1:] == table.ratio[:-1])
        & (table.start[1:] == table.stop[:-1])
        & ~short[:-1]
    )
    first = np.flatnonzero(np.concatenate(([True], ~joined)))
    return tuple(
        Segment(
            kind=_NAMES[int(table.kind[a])],
            start=int(a),
            stop=int(b),
            source_start=int(table.start[a]),
            source_stop=int(table.stop[b - 1]),
            ratio=int(table.ratio[a]) or None,
        )
        for a, b in zip(first, [*first[1:], n], strict=True)
    )


def table_of(segments: Sequence[Segment]) -> SlotTable:
    """Unfold segments into slots; the exact inverse of `segments_of`.

    Args:
        segments: Segments of a memory.

    Returns:
        One entry for each slot.
    """
    table = SlotTable.empty()
    for segment in segments:
        n, length = segment.stop - segment.start, segment.ratio or 1
        start = segment.source_start + np.arange(n) * length
        stop = np.minimum(start + length, segment.source_stop)
        columns = (np.full(n, _CODES[segment.kind]), start, stop, np.full(n, segment.ratio or 0))
        table = table.join(SlotTable(*columns))
    return table
