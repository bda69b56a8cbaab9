"""A byte store in this process: `memory://`, gone when the process ends.

Is        a dictionary in order of use, with a lock and a bound.
Flow      base, eviction -> [memory_bytes] -> store. Imports no torch.
Change    eviction of the in-memory store.
Not here  stores that several processes share -> disk.py.
Holds     the bytes of all values never exceed the bound.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import ClassVar
from weakref import WeakValueDictionary

from ultragist_rag.errors import InputError
from ultragist_rag.store.base import Usage, check_items
from ultragist_rag.store.eviction import plan_eviction
from ultragist_rag.store.keys import SecretSource

__all__ = ["MemoryBytes", "open_memory"]

_named: WeakValueDictionary[str, MemoryBytes] = WeakValueDictionary()
_named_lock = threading.Lock()


class MemoryBytes:
    """Bytes in a dictionary, the one used last at the end."""

    secret_source: ClassVar[SecretSource] = "process"

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._items: dict[str, bytes] = {}
        self._n_bytes = 0
        self._n_evicted = 0
        self._lock = threading.RLock()

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key and mark it as used now; None if there is none."""
        with self._lock:
            data = self._items.pop(key, None)
            if data is not None:
                self._items[key] = data
            return data

    def head(self, key: str, n_bytes: int) -> bytes | None:
        """Return the first bytes under a key; None if there is none. This is no use of it."""
        with self._lock:  # `get` takes it out for a moment
            data = self._items.get(key)
        return None if data is None else data[:n_bytes]

    def put(self, items: Mapping[str, bytes], *, quota: int | None = None) -> None:
        """Store all items of one folder, and evict what was not used for longest.

        Raises:
            InputError: If a key is malformed.
            StoreError: If they do not fit.
        """
        check_items(items)
        with self._lock:
            if self.max_bytes is not None or quota is not None:
                rows = ((key, len(data)) for key, data in self._items.items())
                self._n_evicted += self.delete(tuple(plan_eviction(rows, items, self.max_bytes, quota)))
            self.delete(tuple(items))
            for key, data in items.items():
                self._items[key] = bytes(data)
                self._n_bytes += len(data)

    def delete(self, keys: tuple[str, ...]) -> int:
        """Remove keys; return how many there were."""
        with self._lock:
            removed = [data for key in keys if (data := self._items.pop(key, None)) is not None]
            self._n_bytes -= sum(map(len, removed))
            return len(removed)

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it."""
        with self._lock:
            return key in self._items

    def entries(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of everything in a folder."""
        with self._lock:
            found = [(key, len(data)) for key, data in self._items.items() if key.startswith(f"{folder}/")]
        yield from found

    def usage(self) -> Usage:
        """Return how full the store is."""
        with self._lock:
            return Usage(self._n_bytes, self.max_bytes, self._n_evicted)


def open_memory(url: str, max_bytes: int | None) -> MemoryBytes:
    """Open `memory://`, a new store each time, or `memory://name`, one and the same for all who open that name.

    Args:
        url: The URL. A named store lives as long as someone in this process keeps it.
        max_bytes: Bound on all values.

    Returns:
        The store.

    Raises:
        InputError: If the named store is open with another bound.
    """
    name = url.partition("://")[2]
    if not name:
        return MemoryBytes(max_bytes)
    with _named_lock:
        store = _named.get(name)
        if store is None:
            store = _named[name] = MemoryBytes(max_bytes)
    if store.max_bytes != max_bytes:
        raise InputError(f"{url} is open with max_bytes {store.max_bytes}, not {max_bytes}: pass the same bound.")
    return store
