"""Shelf: the part of a byte store that belongs to one namespace and one secret.

Is        memories and source records under their ids, sealed with the namespace's key.
Flow      codec, refs, source, keys, base, tiers, ahead -> [shelf] -> store.
Change    which files stand for a document.
Not here  what callers ask for -> store.py; bytes on disk -> disk.py.
Holds     a memory whose source is kept is never there without it; another secret or namespace is another shelf;
          what is older than `ttl` is never returned.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import torch

from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import codec, refs, source
from ultragist_rag.store.ahead import read_ahead
from ultragist_rag.store.base import GIST, RECORD, SOURCE, ByteStore
from ultragist_rag.store.keys import Keys
from ultragist_rag.store.seal import N_HEAD, stored_at
from ultragist_rag.store.source import SourceRecord
from ultragist_rag.store.tiers import Kept, Tiers

__all__ = ["Shelf", "by_content", "name_of"]

_now = time.time


def by_content(memory: GistMemory, recipe: refs.Recipe) -> tuple[refs.Recipe, str]:
    """Return recipe and text that the id of a memory without a text is made of; its token ids have no say."""
    memory = replace(memory, source_ids=None)
    return replace(recipe, mode=f"{recipe.mode}+tokens"), hashlib.sha256(codec.encode(memory)).hexdigest()


class Shelf:
    """Reads and writes the files of one namespace."""

    def __init__(
        self,
        place: ByteStore,
        namespace: str,
        secret: bytes,
        ttl: int | float | None = None,
        quota: int | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self.place = place
        self.ttl = ttl
        self.quota = quota
        self.tiers = tiers or Tiers()
        self.namespace = namespace
        self.keys = Keys(secret, namespace)
        readable = re.sub("[^a-z0-9]+", "-", namespace.lower())[:40].strip("-") or "ns"
        self.folder = f"{readable}-{self.keys.tag}"

    def identify(self, recipe: refs.Recipe, text: str) -> str:
        """Return the id of what a recipe makes of a text."""
        return refs.identify(self.keys.ids, self.namespace, recipe, text)

    def save(self, memory: GistMemory, record: SourceRecord, keep_source: bool) -> None:
        """Store a memory and, if asked, its source record: both or none. A record that was stored keeps its time."""
        record = replace(record, stored=record.stored or round(_now(), 3))
        quantise = record.recipe.quantise
        data = codec.encode(memory, key=self.keys.files, name=record.name, stored=record.stored, quantise=quantise)
        items = {self.key(record.name, GIST): data}
        if keep_source:
            items = {self.key(record.name, SOURCE): source.encode(record, self.keys.files), **items}
        self.put(items)

    def put(self, items: Mapping[str, bytes]) -> None:
        """Store files, all or none, within the quota of the namespace."""
        self.place.put(items, quota=self.quota)

    def memory(self, name: str, expected: codec.Expected, device: torch.device | None = None) -> GistMemory | None:
        """Read a memory, from a tier if the file it was read from is still there; None if there is none.

        Args:
            name: Its id.
            expected: What it must belong to.
            device: Where the engine is that is going to read it.

        Returns:
            The memory, on the CPU unless the GPU tier holds it for that engine.

        Raises:
            CorruptGistError: If its file is damaged.
            MemoryMismatchError: If it was made with another model, tokenizer or config than expected.
        """
        (memory,) = self.memories([name], [expected], device)
        return memory

    def memories(
        self, names: Sequence[str], expected: Sequence[codec.Expected], device: torch.device | None = None
    ) -> Generator[GistMemory | None, None, None]:
        """Read several memories in order, as `memory` does each; a folder is read and checked some ahead, in threads.

        Args:
            names: Different ids.
            expected: What each must belong to.
            device: Where the engine is that is going to read them.

        Yields:
            Each memory, or None if there is none; errors are raised in the turn of their memory.
        """
        wanted = dict(zip(names, expected, strict=True))
        missing = dict.fromkeys(name for name in wanted if self.tiers.find(name) is None)
        n_readers = getattr(self.place, "n_readers", 1)
        with closing(read_ahead(lambda name: self._read(name, wanted[name]), list(missing), n_readers)) as reads:
            for name, one in wanted.items():
                memory = None if name in missing else self._kept(name, one, device)
                if memory is None:
                    read = next(reads) if name in missing else self._read(name, one)
                    memory = None if read is None else self.tiers.add(name, read, device)
                yield memory

    def _kept(self, name: str, expected: codec.Expected, device: torch.device | None) -> GistMemory | None:
        self._sweep(name)
        kept = self.tiers.find(name)
        if kept is None:
            return None
        key = self.key(name, GIST)
        head = self.place.get(key) if kept.is_due else self.place.head(key, N_HEAD)
        if head is None or head[:N_HEAD] != kept.head:
            self.tiers.discard(name)
            return None
        found, config = kept.memory, kept.memory.config.to_dict()
        names = {"name": name, "model": found.fingerprint, "tokenizer": found.tokenizer_fingerprint}
        codec.check_match({**names, "config": config}, expected)
        return self.tiers.use(name, kept, device)

    def _read(self, name: str, expected: codec.Expected) -> Kept | None:
        self._sweep(name)
        data = self.place.get(self.key(name, GIST))
        if data is None:
            return None
        return Kept(codec.decode(data, key=self.keys.files, expected=expected), data[:N_HEAD])

    def source(self, name: str) -> SourceRecord | None:
        """Read a source record; None if there is none."""
        self._sweep(name)
        data = self.place.get(self.key(name, SOURCE))
        return None if data is None else source.decode(data, self.keys.files, name)

    def has(self, name: str) -> bool:
        """Say whether a memory is here."""
        self._sweep(name)
        return self.place.contains(self.key(name, GIST))

    def delete(self, name: str) -> bool:
        """Remove a memory and its source record, wherever they are; say whether there was anything."""
        self.tiers.discard(name)
        return self.place.delete((self.key(name, GIST), self.key(name, SOURCE))) > 0

    def names(self) -> Iterator[str]:
        """Yield the ids of all memories."""
        for key, _ in self.entries():
            if key.endswith(GIST):
                yield name_of(key)

    def documents(self) -> list[str]:
        """Return the ids of all memories and source records, sorted."""
        return sorted({name_of(key) for key, _ in self.entries() if not key.endswith(RECORD)})

    def entries(self) -> list[tuple[str, int]]:
        """Return key and size of everything that is not too old."""
        if self.ttl is not None:
            for name in {name_of(key) for key, _ in self.place.entries(self.folder) if not key.endswith(RECORD)}:
                self._sweep(name)
        return list(self.place.entries(self.folder))

    def _sweep(self, name: str) -> None:
        """Remove what of a memory and its source record is too old, or does not say how old it is."""
        if self.ttl is None:
            return
        heads = {key: self.place.head(key, N_HEAD) for key in (self.key(name, GIST), self.key(name, SOURCE))}
        limit = _now() - self.ttl
        old = tuple(key for key, head in heads.items() if head is not None and stored_at(head) <= limit)
        if old:
            self.place.delete(old)

    def key(self, name: str, ending: str) -> str:
        """Return the key of a file."""
        return f"{self.folder}/{name}{ending}"


def name_of(key: str) -> str:
    """Return the id in the key of a file."""
    return key.rpartition("/")[2].partition(".")[0]
