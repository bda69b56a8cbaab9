"""Shelf: the part of a byte store that belongs to one namespace and one secret.

Is        memories and source records under their ids, sealed with the namespace's key.
Flow      codec, refs, source, keys, base -> [shelf] -> store.
Change    which files stand for a document.
Not here  what callers ask for -> store.py; bytes on disk -> disk.py.
Holds     a memory whose source is kept is never there without it; another secret or namespace is another shelf.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import codec, refs, source
from ultragist_rag.store.base import GIST, SOURCE, ByteStore
from ultragist_rag.store.keys import Keys
from ultragist_rag.store.source import SourceRecord

__all__ = ["Shelf"]


class Shelf:
    """Reads and writes the files of one namespace."""

    def __init__(self, place: ByteStore, namespace: str, secret: bytes) -> None:
        self.place = place
        self.namespace = namespace
        self._keys = Keys(secret, namespace)
        readable = re.sub("[^a-z0-9]+", "-", namespace.lower())[:40].strip("-") or "ns"
        self.folder = f"{readable}-{self._keys.tag}"

    def identify(self, recipe: refs.Recipe, text: str) -> str:
        """Return the id of what a recipe makes of a text."""
        return refs.identify(self._keys.ids, self.namespace, recipe, text)

    def save(self, memory: GistMemory, record: SourceRecord, keep_source: bool) -> None:
        """Store a memory and, if asked, its source record: both or none."""
        data = codec.encode(memory, key=self._keys.files, name=record.name)
        items = {self._key(record.name, GIST): data}
        if keep_source:
            items = {self._key(record.name, SOURCE): source.encode(record, self._keys.files), **items}
        self.place.put(items)

    def memory(self, name: str, expected: codec.Expected) -> GistMemory | None:
        """Read a memory; None if there is none."""
        data = self.place.get(self._key(name, GIST))
        return None if data is None else codec.decode(data, key=self._keys.files, expected=expected)

    def source(self, name: str) -> SourceRecord | None:
        """Read a source record; None if there is none."""
        data = self.place.get(self._key(name, SOURCE))
        return None if data is None else source.decode(data, self._keys.files, name)

    def has(self, name: str) -> bool:
        """Say whether a memory is here."""
        return self.place.contains(self._key(name, GIST))

    def delete(self, name: str) -> bool:
        """Remove a memory and its source record; say whether there was anything."""
        return self.place.delete((self._key(name, GIST), self._key(name, SOURCE))) > 0

    def names(self) -> Iterator[str]:
        """Yield the ids of all memories."""
        for key, _ in self.place.entries(self.folder):
            if key.endswith(GIST):
                yield key.rpartition("/")[2].removesuffix(GIST)

    def _key(self, name: str, ending: str) -> str:
        return f"{self.folder}/{name}{ending}"
