"""A byte store of LangChain as a place for memories.

Is        one value per key of any object with `mget`, `mset`, `mdelete` and `yield_keys`.
Flow      indexed_bytes -> [adapted_bytes] -> store. Imports neither torch nor langchain.
Change    how such a store is asked.
Not here  bounds and eviction -> indexed_bytes.py.
Holds     values of others in the same store are left alone; no two threads of ours use one store at the same moment,
          since no such store says that they may.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from weakref import WeakKeyDictionary

from ultragist_rag.store.base import KeyValueStore, is_key
from ultragist_rag.store.indexed_bytes import INDEX, IndexedBytes

__all__ = ["AdaptedBytes"]

_locks: WeakKeyDictionary[KeyValueStore, threading.Lock] = WeakKeyDictionary()
_all_locks = threading.Lock()


class AdaptedBytes(IndexedBytes):
    """Bytes in a store of LangChain, under the keys as they are.

    Such a store tells no sizes: those that no index tells are found out by reading, once per object.
    """

    def __init__(self, store: KeyValueStore, max_bytes: int | None = None) -> None:
        super().__init__(type(store).__name__, max_bytes)
        self._store = store
        self._sizes: dict[str, int] = {}
        self._since_index: set[str] = set()
        self._turn = threading.Lock()
        with _all_locks, suppress(TypeError):  # an object that no dictionary can hold weakly
            self._turn = _locks.setdefault(store, self._turn)  # whoever opens the same object takes turns with us

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key, by reading it; this is no use of it.

        Raises:
            StoreError: If the place cannot be read.
        """
        return self.head(key, 0) is not None

    def _read(self, key: str, n_bytes: int | None) -> bytes | None:
        with self._turn:
            (data,) = self._store.mget([key])
        return None if data is None else data[:n_bytes]

    def _write(self, items: Mapping[str, bytes]) -> None:
        with self._turn:
            self._store.mset(list(items.items()))
            self._sizes |= {key: len(data) for key, data in items.items()}
            self._since_index |= items.keys()
            if INDEX in items:
                self._since_index.clear()

    def _remove(self, keys: Iterable[str]) -> None:
        with self._turn:
            self._store.mdelete(list(keys))

    def _list(self, folder: str) -> dict[str, int]:
        start = f"{folder}/" if folder else ""
        index = self._read_index()
        with self._turn:
            keys = list(self._store.yield_keys(prefix=start or None))
        sizes = {}
        for key in keys:
            if not (is_key(key) and key.startswith(start)):
                continue
            is_told = key in index and key not in self._since_index
            size = index[key][0] if is_told else self._sizes.get(key)
            if size is None:
                data = self._read(key, None)
                if data is None:  # gone meanwhile
                    continue
                size = self._sizes.setdefault(key, len(data))  # what is written meanwhile is newer than what was read
            sizes[key] = size
        return sizes
