"""Reading a store: from markers to memories, texts and prompts.

Is        the half of `GistStore` that changes nothing.
Flow      shelf, resolving, refs -> [reading] -> store.
Change    how callers read.
Not here  opening and writing -> store.py; cutting prompts -> resolving.py.
Holds     what is returned is what was stored; unknown, foreign and evicted ids cannot be told apart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NoReturn
from weakref import WeakKeyDictionary

from ultragist_rag.errors import GistNotFoundError, InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import refs
from ultragist_rag.store.fallback import SourceText
from ultragist_rag.store.recipes import Compressor
from ultragist_rag.store.resolving import cut, is_here, load, put_in_place, refuse
from ultragist_rag.store.shelf import Shelf
from ultragist_rag.store.source import SourceRecord

__all__ = ["StoreReader"]


class StoreReader:
    """What can be asked of the memories of one namespace. Use `GistStore`, which is one."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._n_hits = self._n_misses = 0
        self._lock = threading.Lock()
        self._ids: WeakKeyDictionary[GistMemory, str] = WeakKeyDictionary()  # of memories that were read

    @property
    def namespace(self) -> str:
        """Name of the tenant."""
        return self._shelf.namespace

    def get(self, marker: str, engine: Compressor | None = None) -> GistMemory:
        """Read a memory.

        Args:
            marker: A marker or id.
            engine: The engine that is going to read it. With one, the memory is checked to be of its model, tokenizer
                and config, and an evicted memory is made again from its source record.

        Returns:
            The memory, on the CPU.

        Raises:
            GistNotFoundError: If there is none of this namespace, for whatever reason.
            MemoryMismatchError: If it is of another model, tokenizer or config than the engine.
            CorruptGistError: If its file is damaged.
        """
        name = self._parse(marker)
        memory = self._load([name], engine)[name]
        assert isinstance(memory, GistMemory)
        return memory

    def get_many(self, markers: Sequence[str], engine: Compressor | None = None) -> list[GistMemory]:
        """Read several memories, as `get` does each; those in a folder are read and checked side by side.

        Args:
            markers: Markers or ids.
            engine: As for `get`; evicted memories are made again many at once.

        Returns:
            The memories, on the CPU, in order.

        Raises:
            InputError: If `markers` is a single text.
            GistNotFoundError: If there is none of one of them in this namespace, for whatever reason.
            MemoryMismatchError: If one is of another model, tokenizer or config than the engine.
            CorruptGistError: If a file is damaged.
        """
        if isinstance(markers, str):
            raise InputError("markers is a text: put a single marker into a list, or use get.")
        names = [self._parse(marker) for marker in markers]
        memories = self._load(dict.fromkeys(names), engine)
        return [memory for name in names if isinstance(memory := memories[name], GistMemory)]

    def shown(self, marker: str, engine: Compressor | None) -> GistMemory | SourceText:
        """Read what a prompt shows of a document: its memory, or its text if a calibration says so; as `get`."""
        name = self._parse(marker)
        return self._load([name], engine, as_shown=True)[name]

    def source(self, marker: str) -> SourceRecord:
        """Read the source record of a memory: text, recipe, metadata.

        Args:
            marker: A marker or id.

        Returns:
            The record; it may be there when the memory itself is evicted.

        Raises:
            GistNotFoundError: If there is none of this namespace, for whatever reason.
            CorruptGistError: If its file is damaged.
        """
        name = self._parse(marker)
        return self._shelf.source(name) or self._refuse(name)

    def find_source(self, marker: str) -> SourceRecord | None:
        """Return the source record of a memory as `source` does; None, and no warning in the log, if there is none."""
        name = refs.parse(marker)
        return None if name is None else self._shelf.source(name)

    def id_of(self, memory: GistMemory) -> str | None:
        """Return the id under which this store read a memory; None if the memory is not from this store."""
        with self._lock:
            return self._ids.get(memory)

    def resolve(
        self,
        engine: Compressor | None,
        text: str,
        *,
        max_slots: int | None = None,
        unknown: Literal["error", "text"] = "error",
    ) -> list[str | GistMemory]:
        """Cut a prompt at its markers and put the memories in their places; as `resolve_all` for one text."""
        return self.resolve_all(engine, [text], max_slots=max_slots, unknown=unknown)[0]

    def resolve_all(
        self,
        engine: Compressor | None,
        texts: Sequence[str],
        *,
        max_slots: int | None = None,
        unknown: Literal["error", "text"] = "error",
    ) -> list[list[str | GistMemory]]:
        """Cut the texts of one prompt at their markers and put the memories in their places.

        Markers that line wrapping broke are mended first. A memory stands once, at its first place. Inside a
        `marker_scope` only its markers are read, and all others stay text. Where the calibration of the engine says
        that a memory does not stand for its text, this text is put there instead, as a piece of its own.

        Args:
            engine: As for `get`; with one, memories that were evicted are made again, many at once.
            texts: The prompt, or its messages. What in it is not to be trusted must have gone through `neutralise`.
            max_slots: Slots that all its memories, or tokens that their texts, may take together; None for any number.
            unknown: What becomes of markers that are not of this namespace: an error, or text that is no marker.

        Returns:
            For each text, texts and memories in reading order: the pieces that `generate` takes.

        Raises:
            InputError: If there is a part of a marker, or an argument does not fit.
            GistNotFoundError: If a marker is not of this namespace, for whatever reason.
            ContextOverflowError: If the memories take more than `max_slots`; not all are read then.
            MemoryMismatchError: If a memory is of another model, tokenizer or config than the engine.
            CorruptGistError: If a file is damaged.
        """
        if unknown not in ("error", "text"):
            raise InputError(f"unknown is {unknown!r}, but must be 'error' or 'text'.")
        parts = cut(texts, None if unknown == "error" else lambda name: is_here(self._shelf, name, engine))
        names = {part.name: None for row in parts for part in row if isinstance(part, refs.Ref)}
        return put_in_place(parts, self._load(names, engine, max_slots, as_shown=True))

    def expand_markers(self, text: str) -> str:
        """Put the original texts in the places of their markers, for readers that cannot use memories.

        Args:
            text: A prompt.

        Returns:
            The prompt without markers; a look-alike inside a document is neutralised, and so is every marker that a
            `marker_scope` does not allow.

        Raises:
            InputError: If there is a part of a marker.
            GistNotFoundError: If there is no source record of this namespace, for whatever reason.
            CorruptGistError: If a file is damaged.
        """
        (row,) = cut([text])
        parts = (part if isinstance(part, str) else self.source(part.name).text for part in row)
        return refs.neutralise("".join(parts))

    def __contains__(self, marker: object) -> bool:
        """Say whether the memory of a marker or id is here."""
        name = refs.parse(marker) if isinstance(marker, str) else None
        return name is not None and self._shelf.has(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the markers of all memories of this namespace."""
        yield from map(refs.to_marker, self._shelf.names())

    def __len__(self) -> int:
        """Number of memories of this namespace."""
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        """A store is a store, also when it is empty."""
        return True

    def _parse(self, marker: str) -> str:
        return refs.parse(marker) or self._refuse("something that is no marker")

    def _load(
        self,
        names: Iterable[str],
        engine: Compressor | None,
        max_slots: int | None = None,
        *,
        as_shown: bool = False,
    ) -> dict[str, GistMemory | SourceText]:
        try:
            found, n_made = load(self._shelf, names, engine, max_slots, as_shown=as_shown)
        except GistNotFoundError:
            self._count(misses=1)
            raise
        with self._lock:
            self._ids.update((one, name) for name, one in found.items() if isinstance(one, GistMemory))
        self._count(hits=len(found) - n_made, misses=n_made)
        return found

    def _refuse(self, name: str) -> NoReturn:
        self._count(misses=1)
        refuse(self._shelf, name)

    def _count(self, hits: int = 0, misses: int = 0) -> None:
        with self._lock:
            self._n_hits += hits
            self._n_misses += misses
