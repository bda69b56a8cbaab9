"""Byte stores over places that can only read, write, remove and list: object stores and key-value stores.

Is        the protocol of base.py on four such actions; what a bound needs besides them is kept in one index object.
Flow      base, eviction -> [indexed_bytes] -> remote_bytes, adapted_bytes -> store. Imports no torch.
Change    how bounds are kept where nothing is atomic but a single object.
Not here  the four actions -> remote_bytes.py (fsspec), adapted_bytes.py (LangChain's byte stores).
Holds     what lies there is known from listing it, never from the index; with one writer at a time the bound is never
          exceeded, and several exceed it by no more than what they write at the same moment.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import ClassVar

from ultragist_rag.errors import StoreError
from ultragist_rag.store.base import Usage, check_items, is_key
from ultragist_rag.store.eviction import plan_eviction
from ultragist_rag.store.keys import SecretSource

__all__ = ["INDEX", "IndexedBytes"]

INDEX = "ultragist-index.json"


class IndexedBytes(ABC):
    """Bytes in a place with four actions; each may raise anything.

    The index tells size and time of last use of every key. It is read and written with puts that must keep to a bound,
    and may be lost at any time: sizes are found out anew then, and the order of use begins anew.
    """

    secret_source: ClassVar[SecretSource] = "required"

    def __init__(self, name: str, max_bytes: int | None = None) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._n_evicted = 0
        self._is_bounded = max_bytes is not None
        self._used: dict[str, int] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def _read(self, key: str, n_bytes: int | None) -> bytes | None:
        """Return the first bytes under a key, all for None; None if there is nothing."""

    @abstractmethod
    def _write(self, items: Mapping[str, bytes]) -> None:
        """Write items in order, each as a whole where the place can."""

    @abstractmethod
    def _remove(self, keys: Iterable[str]) -> None:
        """Remove keys, whether they are there or not."""

    @abstractmethod
    def _list(self, folder: str) -> dict[str, int]:
        """Return the sizes of all keys of a folder, of all folders for ""."""

    @abstractmethod
    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key and mark it as used now; None if there is none.

        Raises:
            StoreError: If the place cannot be read.
        """
        data = self._ask(key, None)
        if data is not None and self._is_bounded:
            self._used[key] = time.time_ns()
        return data

    def head(self, key: str, n_bytes: int) -> bytes | None:
        """Return the first bytes under a key; None if there is none. This is no use of it.

        Raises:
            StoreError: If the place cannot be read.
        """
        return self._ask(key, n_bytes)

    def put(self, items: Mapping[str, bytes], *, quota: int | None = None) -> None:
        """Store all items of one folder in order; with a bound or a quota, evict what was not used for longest.

        Raises:
            InputError: If a key is malformed.
            StoreError: If they do not fit, or the place fails; what is new of them is removed as far as it answers.
        """
        check_items(items)
        if self.max_bytes is None and quota is None:
            self._write_all(items, {key for key in items if self.contains(key)})
            return
        with self._lock, self._asking():
            self._is_bounded = True
            index = self._read_index()
            sizes = self._list("")
            used = {key: max(index.get(key, (0, 0))[1], self._used.get(key, 0)) for key in sizes}
            victims = plan_eviction(sorted(sizes.items(), key=lambda row: used[row[0]]), items, self.max_bytes, quota)
            self._remove(victims)
            self._n_evicted += len(victims)
            self._write_all(items, set(sizes))
            sizes |= {key: len(data) for key, data in items.items()}
            used |= dict.fromkeys(items, time.time_ns())
            rows = {key: (sizes[key], used[key]) for key in sizes.keys() - set(victims)}
            self._used = {key: when for key, (_, when) in rows.items()}  # readers add to it at any time
            with suppress(Exception):  # the items are there; the index is not needed to find or to count them
                self._write({INDEX: json.dumps(rows, separators=(",", ":")).encode("ascii")})

    def delete(self, keys: tuple[str, ...]) -> int:
        """Remove keys; return how many there were.

        Raises:
            StoreError: If the place cannot be written.
        """
        with self._lock, self._asking():
            found = [key for key in keys if self.contains(key)]
            self._remove(found)
        return len(found)

    def entries(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of everything in a folder.

        Raises:
            StoreError: If the place cannot be read.
        """
        with self._lock, self._asking():
            sizes = self._list(folder)
        yield from sizes.items()

    def usage(self) -> Usage:
        """Return how full the place is, without the index; while a thread of ours keeps to a bound, after it.

        Raises:
            StoreError: If the place cannot be read.
        """
        with self._lock, self._asking():
            n_bytes = sum(self._list("").values())
        return Usage(n_bytes, self.max_bytes, self._n_evicted)

    def _ask(self, key: str, n_bytes: int | None) -> bytes | None:
        if not is_key(key):
            return None
        with self._asking():
            return self._read(key, n_bytes)

    def _write_all(self, items: Mapping[str, bytes], known: set[str]) -> None:
        """Write items; if that fails, remove what was not `known` before."""
        try:
            with self._asking():
                self._write(items)
        except StoreError:
            with suppress(Exception):
                self._remove([key for key in reversed(list(items)) if key not in known])
            raise

    def _read_index(self) -> dict[str, tuple[int, int]]:
        """Return size and last use of keys; nothing if there is no index, or none that can be read."""
        try:
            rows = json.loads(self._read(INDEX, None) or b"{}")
            return {str(key): (int(size), int(used)) for key, (size, used) in rows.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever the place raises into StoreErrors."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # clients of remote places raise classes of their own
            raise StoreError(
                f"{self.name} failed: {type(error).__name__}: {error}. See to the place, the network and your rights "
                "there, and try again."
            ) from error
