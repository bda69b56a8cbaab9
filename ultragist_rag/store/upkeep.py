"""Upkeep of a store: what is in it, whether it is whole, what can go.

Is        listing, verifying and pruning, over the files of one namespace.
Flow      shelf, records, store -> [upkeep] -> ultragist_rag/cli_store.py.
Change    what is listed, what counts as damaged, what is pruned.
Not here  options and tables -> ultragist_rag/cli_store.py; copying -> rotation.py.
Holds     looking at a file is no use of it: it does not put off its eviction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ultragist_rag.errors import CorruptGistError, StoreError
from ultragist_rag.store import codec, source
from ultragist_rag.store.base import GIST, RECORD, SOURCE
from ultragist_rag.store.recipes import can_repeat
from ultragist_rag.store.refs import to_marker
from ultragist_rag.store.seal import N_HEAD, parse_json, stored_at
from ultragist_rag.store.shelf import Shelf, name_of
from ultragist_rag.store.store import GistStore

__all__ = ["Damage", "Entry", "Pruned", "list_memories", "prune", "verify"]

PAGE_SECONDS = 86400.0
"""A page that no session names is kept for so long: its session may be going to be saved."""

_HEADER = 2**16


@dataclass(frozen=True, slots=True)
class Entry:
    """A memory, by what the header of its file says; whether that is true, `verify` finds out.

    Attributes:
        marker: Its marker.
        stored: Seconds since 1970 at which it was put.
        slots: Places that it takes in a prompt.
        ratios: Raw tokens per gist token; several where windows differ.
        dtype: Number format of the memory, for instance `BF16`.
        quantised: `int8`, `int4` or empty.
        n_bytes: Bytes of its file.
        has_source: Whether the text is there, too.
    """

    marker: str
    stored: float
    slots: int
    ratios: tuple[int, ...]
    dtype: str
    quantised: str
    n_bytes: int
    has_source: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not whole.

    Attributes:
        key: Its key in the place.
        what: What is wrong.
        can_be_made_again: Whether it is a memory whose source record is whole.
    """

    key: str
    what: str
    can_be_made_again: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """How much went.

    Attributes:
        n_memories: Memories.
        n_sources: Source records.
        n_pages: Pages that belonged to no session.
        n_bytes: Bytes of all of them.
    """

    n_memories: int
    n_sources: int
    n_pages: int
    n_bytes: int


def list_memories(store: GistStore) -> Iterator[Entry]:
    """Yield what is known of each memory, the oldest first; files without a readable header are left out."""
    shelf = store._shelf
    sizes = dict(shelf.entries())
    heads = {key: shelf.place.head(key, _HEADER) or b"" for key in sizes if key.endswith(GIST)}
    for key, head in sorted(heads.items(), key=lambda found: (stored_at(found[1][:N_HEAD]), found[0])):
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < end <= sizes[key]:
            head = shelf.place.head(key, end) or b""
        has_source = key.removesuffix(GIST) + SOURCE in sizes
        with suppress(CorruptGistError, AttributeError, KeyError, TypeError, ValueError):
            yield _entry(key, head[:end], sizes[key], has_source)


def _entry(key: str, head: bytes, n_bytes: int, has_source: bool) -> Entry:
    """Make an entry of the header of a file, whose checksum is not looked at."""
    manifest = parse_json(parse_json(head[8:])["__metadata__"]["manifest"])
    return Entry(
        marker=to_marker(name_of(key)),
        stored=stored_at(head[:N_HEAD]),
        slots=int(manifest["slots"]),
        ratios=tuple(sorted({int(ratio) for ratio in manifest["ratios"] if ratio})),
        dtype=str(manifest["dtype"]),
        quantised=str((manifest.get("quantisation") or {}).get("kind", "")),
        n_bytes=n_bytes,
        has_source=has_source,
    )


def verify(store: GistStore, *, repair: bool = False) -> tuple[int, list[Damage]]:
    """Read every file of the namespace and check it to the last byte.

    Args:
        store: The store.
        repair: Whether to remove damaged memories that can be made again.

    Returns:
        How many files there are, and the damaged ones.
    """
    shelf = store._shelf
    files = shelf.entries()
    damaged = []
    for key, size in files:
        what = _damage(store, key, shelf.place.head(key, size)) and _damage(store, key, shelf.place.get(key))
        if what:  # twice: the file may have been replaced by a longer one meanwhile
            damaged.append(Damage(key, what, key.endswith(GIST) and _has_recipe(shelf, name_of(key))))
    if repair:
        shelf.place.delete(tuple(one.key for one in damaged if one.can_be_made_again))
    return len(files), damaged


def prune(store: GistStore, older_than: float | None = None, max_bytes: int | None = None) -> Pruned:
    """Remove pages of no session, what was stored long ago, and what was not used for longest.

    Args:
        store: The store.
        older_than: Age in seconds at which memories and source records go; None for none.
        max_bytes: Bytes that the namespace may keep; None for any number.

    Returns:
        How much went.

    Raises:
        CorruptGistError: If a session cannot be read: its pages would be taken for nobody's.
        StoreError: If records alone take more than `max_bytes`; they stay.
    """
    shelf = store._shelf
    before = dict(shelf.entries())
    store.records.delete("page", _pages_of_nobody(store))
    if older_than is not None:
        limit = time.time() - older_than
        heads = {key: shelf.place.head(key, N_HEAD) for key in before if not key.endswith(RECORD)}
        shelf.place.delete(tuple(key for key, head in heads.items() if head is not None and stored_at(head) <= limit))
    if max_bytes is not None and sum(size for _, size in shelf.entries()) > max_bytes:
        n_bytes = sum(size for key, size in shelf.entries() if key.endswith(RECORD))
        if n_bytes >= max_bytes:
            raise StoreError(
                f"records take {n_bytes} bytes and are never evicted: {max_bytes} cannot be reached. Memories stay. "
                "Delete records or sessions first, or allow more bytes."
            )
        room = shelf.key("a" * 26, RECORD)  # the place evicts in its own order so that this fits, and it goes again
        shelf.place.put({room: b" "}, quota=max_bytes)
        shelf.place.delete((room,))
    after = {key for key, _ in shelf.entries()}
    gone = [key for key in before if key not in after]
    n_memories, n_sources, n_pages = (sum(key.endswith(ending) for key in gone) for ending in (GIST, SOURCE, RECORD))
    return Pruned(n_memories, n_sources, n_pages, sum(before[key] for key in gone))


def _pages_of_nobody(store: GistStore) -> list[str]:
    used = {page for name in store.records.names("session") for page in _pages(store.records.get("session", name))}
    limit = time.time() - PAGE_SECONDS
    unused = [name for name in store.records.names("page") if name not in used]
    return [name for name in unused if (store.records.stored("page", name) or limit) < limit]


def _pages(manifest: dict[str, Any] | None) -> list[str]:
    return list((manifest or {}).get("pages", ()))


def _damage(store: GistStore, key: str, data: bytes | None) -> str:
    """Say what is wrong with a file; nothing if it is whole, or gone."""
    if data is None:
        return ""
    files = store._shelf.keys.files
    try:
        if key.endswith(GIST):
            codec.decode(data, key=files, expected=codec.Expected(name=name_of(key)))
        elif key.endswith(SOURCE):
            source.decode(data, files, name_of(key))
        else:
            store.records.check(key, data)
    except CorruptGistError as error:
        return str(error)
    return ""


def _has_recipe(shelf: Shelf, name: str) -> bool:
    try:
        record = shelf.source(name)
    except CorruptGistError:
        return False
    return record is not None and can_repeat(record.recipe)
