"""What a place for bytes must do, and which places there are.

Is        the protocol of byte stores, the names under which things are kept, and the registry by URL scheme.
Flow      errors -> [base] -> eviction -> memory_bytes, disk, redis_bytes, indexed_bytes -> store. Imports no torch.
Change    a new kind of store is one file with the protocol and one line in SCHEMES.
Not here  what the bytes mean -> codec.py, source.py, records.py; what is evicted -> eviction.py.
Holds     a key is read as it was written, or as missing; never in part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ultragist_rag.errors import InputError
from ultragist_rag.store.keys import SecretSource

__all__ = [
    "GIST",
    "RECORD",
    "SCHEMES",
    "SOURCE",
    "ByteStore",
    "KeyValueStore",
    "Usage",
    "check_items",
    "is_key",
    "open_bytes",
    "without_password",
]

GIST = ".gist"
"""Ending of a key that holds a memory; these are evicted first."""

SOURCE = ".source"
"""Ending of a key that holds a source record; evicted only when no memory is left to evict."""

RECORD = ".record"
"""Ending of a key that holds a document of a user, such as a chat archive; never evicted."""

SCHEMES: dict[str, str] = {
    "memory": "ultragist_rag.store.memory_bytes:open_memory",
    "file": "ultragist_rag.store.disk:open_folder",
    **dict.fromkeys(("redis", "rediss", "unix"), "ultragist_rag.store.redis_bytes:open_redis"),
}
"""What opens each URL scheme, called with the URL, the bound and the options; a path without a scheme is a file."""

_REMOTE = "ultragist_rag.store.remote_bytes:open_remote"  # for every other scheme
_ADAPTED = "ultragist_rag.store.adapted_bytes:AdaptedBytes"  # for objects
_LOCAL = (SCHEMES["memory"], SCHEMES["file"], _ADAPTED)
_SCHEME = re.compile(r"([^/\\]{2,})://.*", re.DOTALL)  # a single letter is a drive
_KEY = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}/[a-z2-7]{26}\.(gist|source|record)")


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a byte store is.

    Attributes:
        n_bytes: Bytes of everything it holds, all namespaces.
        max_bytes: The bound; None for none.
        n_evicted: Keys this object has evicted since it was opened.
    """

    n_bytes: int
    max_bytes: int | None
    n_evicted: int


@runtime_checkable
class ByteStore(Protocol):
    """Keeps bytes under keys of the form `folder/id.gist`, `folder/id.source` and `folder/id.record`.

    Every method may be called from several threads. All raise StoreError if the place itself fails, and work again as
    soon as the place does. A place may have a number `n_readers`: how many memories of a prompt are read from it at a
    time, in threads; without, it is 1.
    """

    secret_source: ClassVar[SecretSource]
    """Where the secret comes from if the caller gives none."""

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key and mark it as used now; None if there is none."""

    def head(self, key: str, n_bytes: int) -> bytes | None:
        """Return the first bytes under a key; None if there is none. This is no use of it."""

    def put(self, items: Mapping[str, bytes], *, quota: int | None = None) -> None:
        """Store all items or none, replacing what is there, and evict what was not used for longest.

        Memories go before source records; records stay, and no item goes for another one of the same call. What dies
        half-way through leaves the first items at most: the last one is there only if all are.

        Args:
            items: Bytes by key, all of one folder, in the order in which they are written.
            quota: Bytes that this folder may hold; to keep to it, only what is in the folder goes.

        Raises:
            InputError: If a key is malformed, or the keys are of several folders.
            StoreError: If they do not fit beside the records, or the place fails; nothing is changed then.
        """

    def delete(self, keys: tuple[str, ...]) -> int:
        """Remove keys; return how many there were."""

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it."""

    def entries(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of everything in a folder, in any order."""

    def usage(self) -> Usage:
        """Return how full the place is."""


@runtime_checkable
class KeyValueStore(Protocol):
    """What LangChain calls a ByteStore, as far as it is used here."""

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the values of keys, None for those that are missing."""

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set the values of keys."""

    def mdelete(self, keys: Sequence[str]) -> None:
        """Remove keys, whether they are there or not."""

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Yield the keys that begin with a prefix."""


def is_key(key: str) -> bool:
    """Say whether a key has the one form there is: nothing else ever reaches a file system."""
    return _KEY.fullmatch(key) is not None


def check_items(items: Mapping[str, bytes]) -> str:
    """Return the folder of the keys of a put.

    Raises:
        InputError: If a key is malformed, or they are of several folders.
    """
    folders = {key.partition("/")[0] for key in items}
    if not all(map(is_key, items)) or len(folders) != 1:
        raise InputError(
            f"keys {', '.join(items)} are not of the form folder/id.gist, folder/id.source or folder/id.record, all of "
            "one folder."
        )
    return folders.pop()


def without_password(url: str) -> str:
    """Return a URL as it may stand in messages."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def open_bytes(url: Any, max_bytes: int | None = None, **options: Any) -> ByteStore:
    """Open the byte store of a URL.

    Args:
        url: A folder, `scheme://location` with a scheme of SCHEMES or of fsspec, or a KeyValueStore.
        max_bytes: Bound on everything in it, all namespaces together; None for none.
        options: What the client of a remote place takes besides.

    Returns:
        The byte store.

    Raises:
        InputError: If it is none of these, the scheme is unknown or its package is not installed, the bound is not a
            positive number, or there are options that do not fit.
        StoreError: If the place cannot be used.
    """
    if max_bytes is not None and (isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1):
        raise InputError(f"max_bytes is {max_bytes!r}, but must be a number of bytes above 0, or None for no bound.")
    if isinstance(url, KeyValueStore):
        scheme, opener = type(url).__name__, _ADAPTED
    elif not isinstance(url, str | os.PathLike):
        raise InputError(f"a {type(url).__name__} is no place: pass a folder, a URL or a byte store of LangChain.")
    else:
        if not (isinstance(url, str) and _SCHEME.fullmatch(url)):
            url = f"file://{Path(url).expanduser()}" if url else "file://"
        scheme, _, location = url.partition("://")
        scheme = scheme.lower()
        url, opener = f"{scheme}://{location}", SCHEMES.get(scheme, _REMOTE)
    if options and opener in _LOCAL:
        raise InputError(f"options {', '.join(sorted(options))}: {scheme} takes none, leave them out.")
    module, name = opener.split(":")
    opened: ByteStore = getattr(import_module(module), name)(url, max_bytes, **options)
    return opened
