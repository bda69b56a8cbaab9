"""What a store tells about itself: progress of a long call, counts, what became of ids.

Is        frozen records.
Flow      [reports] -> store.
Change    what is counted.
Holds     counts and sizes only, never text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Rotation", "StoreProgress", "StoreStats", "TierStats"]


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
class TierStats:
    """Counts of the decoded memories in RAM or on the GPU.

    Attributes:
        n_memories: Memories there.
        n_bytes: Bytes of their keys and values.
        max_bytes: The bound.
        n_hits: How often one of them was served.
    """

    n_memories: int
    n_bytes: int
    max_bytes: int
    n_hits: int


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
        quota: Bound on `n_bytes`; None for none.
        n_hits: Memories read or found through this object.
        n_misses: Memories it did not find.
        n_evicted: Memories and source records it evicted.
        tiers: Counts of the decoded memories, by `ram` and `gpu`.
    """

    n_memories: int
    n_sources: int
    n_records: int
    n_bytes: int
    n_total_bytes: int
    max_bytes: int | None
    quota: int | None
    n_hits: int
    n_misses: int
    n_evicted: int
    tiers: Mapping[str, TierStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rotation:
    """What became of the memories of a store that were given new ids.

    Attributes:
        markers: New marker by old one; memories that were evicted are among them, if their source records were there.
        without_source: Old markers of memories whose text is not there: nobody can sign a new id for them.
        damaged: Old markers of files that are not whole.
        n_records: Documents of users that moved along.
    """

    markers: Mapping[str, str]
    without_source: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    n_records: int = 0

    @property
    def n_without_source(self) -> int:
        """Number of memories whose text is not there."""
        return len(self.without_source)
