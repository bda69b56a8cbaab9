"""GistStore: compress once, keep, find again by a marker or by the text.

Is        the front of a byte store for one namespace: what goes in and out are memories, markers and source records.
Flow      shelf, recipes, resolving -> [store] -> engine, integrations.
Change    what a caller can ask of a store.
Not here  bytes on disk -> disk.py; the file of a memory -> codec.py; ids -> refs.py; cutting prompts -> resolving.py.
Holds     what is returned is what was stored; unknown, foreign and evicted ids cannot be told apart.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

from ultragist_rag.errors import GistNotFoundError, InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import codec, refs
from ultragist_rag.store.base import GIST, open_bytes
from ultragist_rag.store.filling import fill
from ultragist_rag.store.keys import find_secret
from ultragist_rag.store.recipes import Compressor, recipe_for, recipe_of
from ultragist_rag.store.reports import StoreProgress, StoreStats
from ultragist_rag.store.resolving import check_lists, cut, is_here, load, put_in_place, refuse
from ultragist_rag.store.scope import hand_out
from ultragist_rag.store.shelf import Shelf
from ultragist_rag.store.source import SourceRecord

__all__ = ["GistStore"]


class GistStore:
    """Memories and their source records, of one namespace. Threads and processes may share a store."""

    def __init__(self, shelf: Shelf, *, keep_source: bool = True) -> None:
        self.keep_source = keep_source
        self._shelf = shelf
        self._n_hits = self._n_misses = 0
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        namespace: str = "default",
        secret: str | bytes | None = None,
        max_bytes: int | None = None,
        *,
        keep_source: bool = True,
        ttl: int | float | None = None,
    ) -> GistStore:
        """Open a store.

        Args:
            url: A folder, `memory://` (this process, a new one each time) or `memory://name` (one for that name).
            namespace: Name of the tenant; its memories cannot be found from any other namespace.
            secret: What ids are signed with. None takes the environment variable ULTRAGIST_SECRET; else a secret of
                this process for `memory://` and a key file in the user's config folder for a folder.
            max_bytes: Bound on the bytes of all namespaces together; what was not used for longest goes first.
            keep_source: Whether texts are kept beside their memories, so that these can be made again.
            ttl: Seconds after `put` when memory and source record count as gone, and are removed when met; None never.

        Returns:
            The store.

        Raises:
            InputError: If an argument does not fit.
            StoreError: If the place cannot be used, or there is no secret.

        Example:
            >>> store = GistStore.open("memory://", namespace="acme")
            >>> len(store), store.resolve(None, "a prompt without markers")
            (0, ['a prompt without markers'])
        """
        if not isinstance(namespace, str) or not namespace:
            raise InputError(f"namespace is {namespace!r}, but must be a name.")
        if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int | float) or not 0 < ttl < math.inf):
            raise InputError(f"ttl is {ttl!r}, but must be a number of seconds above 0, or None for no limit.")
        place = open_bytes(url, max_bytes)
        return cls(Shelf(place, namespace, find_secret(secret, place.secret_source), ttl), keep_source=keep_source)

    @property
    def namespace(self) -> str:
        """Name of the tenant."""
        return self._shelf.namespace

    def put(
        self,
        memory: GistMemory,
        text: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        ratio: int | None = None,
        keep_source: bool | None = None,
    ) -> str:
        """Store a memory.

        Args:
            memory: The memory, as it is: one that is not sealed can go on after it is read.
            text: What it was made from; with it, `find` finds it and it can be made again. None for a memory of tokens.
            metadata: JSON values to keep beside the text.
            ratio: The ratio that was asked for, if its segments do not tell.
            keep_source: Whether to keep text and metadata; None for the store's own setting.

        Returns:
            The marker that stands for the memory in texts. The same memory of the same text always gets the same one.

        Raises:
            InputError: If the metadata cannot be stored as JSON.
            StoreError: If it does not fit, or the place cannot be written.
        """
        recipe = recipe_of(memory, ratio)
        if text is None:
            recipe = replace(recipe, mode=f"{recipe.mode}+tokens")
        name = self._shelf.identify(recipe, hashlib.sha256(codec.encode(memory)).hexdigest() if text is None else text)
        keep = text is not None and (self.keep_source if keep_source is None else keep_source)
        record = SourceRecord(name=name, text=text or "", recipe=recipe, metadata=metadata or {})
        self._shelf.save(memory, record, keep)
        return hand_out(name)

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
        return self._load([name], engine)[name]

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

    def delete(self, marker: str) -> bool:
        """Remove a memory and its source record; say whether there was anything."""
        name = refs.parse(marker)
        return name is not None and self._shelf.delete(name)

    def find(self, text: str, engine: Compressor, ratio: int | None = None, *, joint: bool = False) -> str | None:
        """Say whether what an engine would make of a text is stored already.

        Args:
            text: The document.
            engine: The engine.
            ratio: Raw tokens per gist token; None for the ratio of its config.
            joint: Whether the memory is a stream of its own.

        Returns:
            The marker, or None if there is no such memory.
        """
        name = self._shelf.identify(recipe_for(engine, ratio, joint), text)
        found = self._shelf.has(name)
        self._count(hits=int(found), misses=int(not found))
        return hand_out(name) if found else None

    def get_or_compress(
        self,
        engine: Compressor,
        texts: Sequence[str],
        *,
        ratio: int | Sequence[int] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        progress: Callable[[StoreProgress], object] | None = None,
    ) -> list[str]:
        """Return the markers of texts, compressing what is not stored yet.

        Args:
            engine: Compresses what is missing, many texts at once.
            texts: Documents.
            ratio: Raw tokens per gist token, one for all texts or one for each; None for the ratio of its config.
            metadata: JSON values to keep beside each text.
            progress: Called after the look-up, and after each batch.

        Returns:
            One marker per text, in order.

        Raises:
            InputError: If `texts` is not a list of texts, or `ratio` or `metadata` are not as long.
            StoreError: If a memory does not fit, or the place cannot be written.
        """
        ratios = list(ratio) if isinstance(ratio, Sequence) else [ratio] * len(texts)
        check_lists(texts, metadata=metadata, ratios=ratios)
        recipes = {one: recipe_for(engine, one) for one in set(ratios)}
        records = [
            SourceRecord(name=self._shelf.identify(recipes[one], text), text=text, recipe=recipes[one], metadata=note)
            for text, one, note in zip(texts, ratios, metadata or [{}] * len(texts), strict=True)
        ]
        n_hits, n_misses = fill(self._shelf, engine, records, self.keep_source, progress or (lambda _: None))
        self._count(hits=n_hits, misses=n_misses)
        return [hand_out(record.name) for record in records]

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
        `marker_scope` only its markers are read, and all others stay text.

        Args:
            engine: As for `get`; with one, memories that were evicted are made again, many at once.
            texts: The prompt, or its messages. What in it is not to be trusted must have gone through `neutralise`.
            max_slots: Slots that all its memories may take together; None for any number.
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
        return put_in_place(parts, self._load(names, engine, max_slots))

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

    def stats(self) -> StoreStats:
        """Count what is there."""
        sizes = self._shelf.entries()
        usage = self._shelf.place.usage()
        n_memories = sum(key.endswith(GIST) for key, _ in sizes)
        return StoreStats(
            n_memories=n_memories,
            n_sources=len(sizes) - n_memories,
            n_bytes=sum(size for _, size in sizes),
            n_total_bytes=usage.n_bytes,
            max_bytes=usage.max_bytes,
            n_hits=self._n_hits,
            n_misses=self._n_misses,
            n_evicted=usage.n_evicted,
        )

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
        self, names: Iterable[str], engine: Compressor | None, max_slots: int | None = None
    ) -> dict[str, GistMemory]:
        try:
            memories, n_made = load(self._shelf, names, engine, max_slots)
        except GistNotFoundError:
            self._count(misses=1)
            raise
        self._count(hits=len(memories) - n_made, misses=n_made)
        return memories

    def _refuse(self, name: str) -> NoReturn:
        self._count(misses=1)
        refuse(self._shelf, name)

    def _count(self, hits: int = 0, misses: int = 0) -> None:
        with self._lock:
            self._n_hits += hits
            self._n_misses += misses
