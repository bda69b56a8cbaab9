"""Tiers: decoded memories kept in RAM and on the GPU, above the place where their files lie.

Is        two lists in order of use, each with a bound on its bytes; what the GPU has no room for falls to RAM.
Flow      memory -> [tiers] -> shelf.
Change    which memories are kept decoded, and where.
Not here  the files -> base.py; whether a kept memory may be served -> shelf.py.
Holds     the memories of a tier never exceed its bound; each lies in one tier.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

import torch

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store.reports import TierStats

__all__ = ["Kept", "Tiers"]

REFRESH_SECONDS = 60.0
"""After this time a memory that is still asked for is read again, so that its place knows that it is in use."""

_now = time.monotonic


@dataclass(frozen=True, slots=True)
class Kept:
    """A decoded memory.

    Attributes:
        memory: The memory.
        head: First bytes of the file it was read from; another file under its id has other ones.
        read: When the place was told of its use.
    """

    memory: GistMemory
    head: bytes
    read: float = field(default_factory=lambda: _now())

    @property
    def is_due(self) -> bool:
        """Whether the place is to be told that the memory is in use."""
        return _now() - self.read > REFRESH_SECONDS


class Tiers:
    """Memories by id in RAM and on the GPU. Threads may share them."""

    def __init__(self, ram_bytes: int = 0, gpu_bytes: int = 0, device: str | torch.device | None = None) -> None:
        """Make empty tiers.

        Args:
            ram_bytes: Bound on the memories in RAM; they are page-locked if there is a CUDA device.
            gpu_bytes: Bound on the memories on the GPU.
            device: Where the GPU's memories lie; None for wherever the engine is that asks for one.

        Raises:
            InputError: If a bound is not a number of bytes, or there is no GPU and no device is given.
        """
        for name, bound in (("ram_bytes", ram_bytes), ("gpu_bytes", gpu_bytes)):
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 0:
                raise InputError(f"{name} is {bound!r}, but must be a number of bytes, or 0 for none.")
        if gpu_bytes and device is None and not torch.cuda.is_available():
            raise InputError(
                f"gpu_bytes is {gpu_bytes}, but there is no CUDA device. Leave it out, or pass device=...."
            )
        self.device = None if device is None else torch.device(device)
        self._bounds = {"gpu": gpu_bytes, "ram": ram_bytes}
        self._kept: dict[str, dict[str, Kept]] = {"gpu": {}, "ram": {}}  # the one used last at the end
        self._n_bytes = dict.fromkeys(self._bounds, 0)
        self._n_hits = dict.fromkeys(self._bounds, 0)
        self._lock = threading.Lock()

    def find(self, name: str) -> Kept | None:
        """Return what is kept under an id; this is no use of it."""
        with self._lock:
            return next((kept[name] for kept in self._kept.values() if name in kept), None)

    def use(self, name: str, kept: Kept, device: torch.device | None) -> GistMemory:
        """Count a hit and move the memory to the front, onto the GPU if a device is named that has the tier.

        Args:
            name: The id.
            kept: What `find` returned.
            device: Where the engine is that is going to read it; None if there is none.

        Returns:
            The memory, from where it lies; on the CPU if no engine asks.
        """
        with self._lock:
            tier = next((tier for tier, there in self._kept.items() if name in there), None)
            if tier is not None:  # else another thread's memories took its room just now
                self._n_hits[tier] += 1
        return self.add(name, Kept(kept.memory, kept.head) if kept.is_due else kept, device)

    def add(self, name: str, kept: Kept, device: torch.device | None) -> GistMemory:
        """Keep a memory in the best tier that has room for it; what was not used for longest makes room.

        Args:
            name: Its id.
            kept: The memory.
            device: Where the engine is that is going to read it; None if there is none.

        Returns:
            The memory, from where it lies; on the CPU if no engine asks.
        """
        memory, size = kept.memory, kept.memory.nbytes
        target = self._target(device)
        with self._lock:
            was_on_gpu = self._drop(name) == "gpu"
            if size <= self._bounds["gpu"] and (was_on_gpu or target is not None):
                memory = memory.to(target) if target is not None else memory
                self._insert("gpu", name, replace(kept, memory=memory))
            elif size <= self._bounds["ram"]:
                memory = _in_ram(memory)
                self._insert("ram", name, replace(kept, memory=memory))
        return memory if device is not None else memory.to("cpu")

    def discard(self, name: str) -> None:
        """Forget a memory."""
        with self._lock:
            self._drop(name)

    def stats(self) -> dict[str, TierStats]:
        """Return bytes and hits of each tier that has a bound above 0."""
        with self._lock:
            return {
                tier: TierStats(len(self._kept[tier]), self._n_bytes[tier], bound, self._n_hits[tier])
                for tier, bound in self._bounds.items()
                if bound
            }

    def _target(self, device: torch.device | None) -> torch.device | None:
        """Return where the GPU tier is for an engine on a device; None if it has none."""
        if device is None or not self._bounds["gpu"]:
            return None
        return self.device or (device if device.type == "cuda" else None)

    def _insert(self, tier: str, name: str, kept: Kept) -> None:
        """Put a memory at the front of a tier, and what must go for it into the tier below."""
        while self._n_bytes[tier] + kept.memory.nbytes > self._bounds[tier]:
            oldest = next(iter(self._kept[tier]))
            fallen = self._kept[tier][oldest]
            self._drop(oldest)
            if tier == "gpu" and fallen.memory.nbytes <= self._bounds["ram"]:
                self._insert("ram", oldest, replace(fallen, memory=_in_ram(fallen.memory)))
        self._kept[tier][name] = kept
        self._n_bytes[tier] += kept.memory.nbytes

    def _drop(self, name: str) -> str | None:
        """Forget a memory; return the tier it was in."""
        for tier, there in self._kept.items():
            if name in there:
                self._n_bytes[tier] -= there.pop(name).memory.nbytes
                return tier
        return None


def _in_ram(memory: GistMemory) -> GistMemory:
    """Return a memory on the CPU, page-locked where that makes copies to a GPU fast."""
    memory = memory.to("cpu")
    if not torch.cuda.is_available() or memory.keys[0].is_pinned():
        return memory
    return memory.pin_memory()
