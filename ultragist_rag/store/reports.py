"""What a store tells about itself: progress of a long call, and counts.

Is        two frozen records.
Flow      [reports] -> store.
Change    what is counted.
Holds     counts and sizes only, never text.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreProgress", "StoreStats"]


@dataclass(frozen=True, slots=True)
class StoreProgress:
    """How far `get_or_compress` has come.

    Attributes:
        n_texts: Different texts it was given.
        n_hits: Those that were stored already.
        n_compressed: Those compressed and stored so far.
    """

    n_texts: int
    n_hits: int
    n_compressed: int


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts of a store.

    Attributes:
        n_memories: Memories of this namespace.
        n_sources: Source records of this namespace.
        n_records: Records of this namespace.
        n_bytes: Bytes of all three.
        n_total_bytes: Bytes of all namespaces.
        max_bytes: Bound on `n_total_bytes`; None for none.
        n_hits: Memories read or found through this object.
        n_misses: Memories it did not find.
        n_evicted: Memories and source records it evicted.
    """

    n_memories: int
    n_sources: int
    n_records: int
    n_bytes: int
    n_total_bytes: int
    max_bytes: int | None
    n_hits: int
    n_misses: int
    n_evicted: int
