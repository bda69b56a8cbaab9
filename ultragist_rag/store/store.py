"""GistStore: compress once, keep, find again by a marker or by the text.

Is        the front of a byte store for one namespace: opening it, and what changes it.
Flow      shelf, recipes, reading, records, filling -> [store] -> engine, integrations.
Change    what a caller can ask of a store.
Not here  reading -> reading.py; bytes on disk -> disk.py; the file of a memory -> codec.py; ids -> refs.py.
Holds     what is returned is what was stored; unknown, foreign and evicted ids cannot be told apart.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.sizing import Kind
from ultragist_rag.store import refs, rotation
from ultragist_rag.store.base import GIST, RECORD, SOURCE, KeyValueStore, open_bytes
from ultragist_rag.store.filling import fill
from ultragist_rag.store.keys import find_secret
from ultragist_rag.store.quantise import check_kind
from ultragist_rag.store.reading import StoreReader
from ultragist_rag.store.recipes import Compressor, recipe_for, recipe_of
from ultragist_rag.store.records import Records
from ultragist_rag.store.reports import Rotation, StoreProgress, StoreStats
from ultragist_rag.store.resolving import check_lists
from ultragist_rag.store.scope import hand_out
from ultragist_rag.store.shelf import Shelf, by_content
from ultragist_rag.store.source import SourceRecord
from ultragist_rag.store.tiers import Tiers

__all__ = ["GistStore"]

Quantise = Kind | Literal["none"]


class GistStore(StoreReader):
    """Memories and their source records, of one namespace. Threads and processes may share a store."""

    def __init__(self, shelf: Shelf, *, keep_source: bool = True, quantise: Kind | None = None) -> None:
        super().__init__(shelf)
        self.keep_source = keep_source
        self.quantise = quantise

    @classmethod
    def open(  # noqa: PLR0913 - one argument per setting of a store
        cls,
        url: str | os.PathLike[str] | KeyValueStore,
        namespace: str = "default",
        secret: str | bytes | None = None,
        max_bytes: int | None = None,
        *,
        keep_source: bool = True,
        ttl: int | float | None = None,
        quota: int | None = None,
        quantise: Kind | None = None,
        ram_bytes: int = 0,
        gpu_bytes: int = 0,
        device: str | torch.device | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> GistStore:
        """Open a store.

        Args:
            url: A folder, `memory://` (this process, a new one each time), `memory://name` (one for that name),
                `redis://host:port/db`, any URL that fsspec knows (`s3://bucket/prefix`), or a LangChain `ByteStore`.
            namespace: Name of the tenant; its memories cannot be found from any other namespace.
            secret: What ids are signed with. None takes the environment variable ULTRAGIST_SECRET; else a secret of
                this process for `memory://` and a key file in the user's config folder for a folder. What is reached
                over a network needs one.
            max_bytes: Bound on the bytes of all namespaces together; what was not used for longest goes first.
            keep_source: Whether texts are kept beside their memories, so that these can be made again.
            ttl: Seconds after `put` when memory and source record count as gone, and are removed when met; None never.
            quota: Bound on the bytes of this namespace; to keep to it, only what is in the namespace goes.
            quantise: `int8` or `int4` to store memories in fewer bits; None for their own number format.
            ram_bytes: Bound on the decoded memories that are kept in RAM.
            gpu_bytes: Bound on the memories that are kept on the GPU.
            device: Where the GPU's memories lie; None for wherever the engine is that asks for one.
            options: What else the client of a remote place wants to know.

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
        if quota is not None and (isinstance(quota, bool) or not isinstance(quota, int) or quota < 1):
            raise InputError(f"quota is {quota!r}, but must be a number of bytes above 0, or None for no bound.")
        kind = None if quantise is None else check_kind(quantise)
        tiers = Tiers(ram_bytes, gpu_bytes, device)
        place = open_bytes(url, max_bytes, **(options or {}))
        shelf = Shelf(place, namespace, find_secret(secret, place.secret_source), ttl, quota, tiers)
        return cls(shelf, keep_source=keep_source, quantise=kind)

    @property
    def records(self) -> Records:
        """Documents of users' own in this namespace: JSON under a kind and a name, never evicted."""
        return Records(self._shelf)

    def put(
        self,
        memory: GistMemory,
        text: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        ratio: int | None = None,
        keep_source: bool | None = None,
        quantise: Quantise | None = None,
    ) -> str:
        """Store a memory.

        Args:
            memory: The memory, as it is: one that is not sealed can go on after it is read.
            text: What it was made from; with it, `find` finds it and it can be made again. None for a memory of tokens.
            metadata: JSON values to keep beside the text.
            ratio: The ratio that was asked for, if its segments do not tell.
            keep_source: Whether to keep text, token ids and metadata; None for the store's own setting.
            quantise: `int8`, `int4`, or `none` to store it bit by bit; None for the store's own setting.

        Returns:
            The marker that stands for the memory in texts. The same memory of the same text always gets the same one.

        Raises:
            InputError: If the metadata cannot be stored as JSON, or the memory cannot be quantised.
            StoreError: If it does not fit, or the place cannot be written.
        """
        recipe = recipe_of(memory, ratio, dtype=self._kind(quantise))
        recipe, identity = (recipe, text) if text is not None else by_content(memory, recipe)
        name = self._shelf.identify(recipe, identity)
        keep = self.keep_source if keep_source is None else keep_source
        memory = memory if keep else replace(memory, source_ids=None)
        record = SourceRecord(name=name, text=text or "", recipe=recipe, metadata=metadata or {})
        self._shelf.save(memory, record, keep and text is not None)
        return hand_out(name)

    def delete(self, marker: str) -> bool:
        """Remove a memory and its source record; say whether there was anything."""
        name = refs.parse(marker)
        return name is not None and self._shelf.delete(name)

    def find(
        self,
        text: str,
        engine: Compressor,
        ratio: int | None = None,
        *,
        joint: bool = False,
        quantise: Quantise | None = None,
        verbatim: str | None = None,
    ) -> str | None:
        """Say whether what an engine would make of a text is stored already.

        Args:
            text: The document.
            engine: The engine.
            ratio: Raw tokens per gist token; None for the ratio of its config.
            joint: Whether the memory is a stream of its own.
            quantise: As for `put`.
            verbatim: Name of the policy that keeps spans raw; None for none.

        Returns:
            The marker, or None if there is no such memory.
        """
        recipe = recipe_for(engine, ratio, joint, dtype=self._kind(quantise), verbatim=verbatim or "")
        name = self._shelf.identify(recipe, text)
        found = self._shelf.has(name)
        self._count(hits=int(found), misses=int(not found))
        return hand_out(name) if found else None

    def get_or_compress(  # noqa: PLR0913 - one argument per choice, as for find
        self,
        engine: Compressor,
        texts: Sequence[str],
        *,
        ratio: int | Sequence[int] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        quantise: Quantise | None = None,
        verbatim: str | None = None,
        progress: Callable[[StoreProgress], object] | None = None,
    ) -> list[str]:
        """Return the markers of texts, compressing what is not stored yet.

        Args:
            engine: Compresses what is missing, many texts at once.
            texts: Documents.
            ratio: Raw tokens per gist token, one for all texts or one for each; None for the ratio of its config.
            metadata: JSON values to keep beside each text.
            quantise: As for `put`.
            verbatim: Name of the policy that keeps spans raw; None for none.
            progress: Called after the look-up, and after each batch.

        Returns:
            One marker per text, in order.

        Raises:
            InputError: If `texts` is not a list of texts, or `ratio` or `metadata` are not as long.
            StoreError: If a memory does not fit, or the place cannot be written.
        """
        ratios = list(ratio) if isinstance(ratio, Sequence) else [ratio] * len(texts)
        check_lists(texts, metadata=metadata, ratios=ratios)
        settings: dict[str, Any] = {"dtype": self._kind(quantise), "verbatim": verbatim or ""}
        recipes = {one: recipe_for(engine, one, **settings) for one in set(ratios)}
        records = [
            SourceRecord(name=self._shelf.identify(recipes[one], text), text=text, recipe=recipes[one], metadata=note)
            for text, one, note in zip(texts, ratios, metadata or [{}] * len(texts), strict=True)
        ]
        n_hits, n_misses = fill(self._shelf, engine, records, self.keep_source, progress or (lambda _: None))
        self._count(hits=n_hits, misses=n_misses)
        return [hand_out(record.name) for record in records]

    def rotate(
        self, new_secret: str | bytes, *, drop: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Rotation:
        """Sign everything with another secret, and use that from here on: every memory gets a new id.

        New ids come from source records, those of memories put without text from their content; memories whose text was
        not kept stay behind under the old secret. Nothing is compressed. A run that was interrupted is run again;
        nobody else should write to the namespace meanwhile.

        Args:
            new_secret: The secret from now on.
            drop: Whether to remove what cannot be given a new id: memories whose text was not kept, damaged files.
            progress: Called after each memory with how many are done, and how many there are.

        Returns:
            New markers by old ones, and what stayed behind.

        Raises:
            InputError: If the new secret is empty, or the old one.
            StoreError: If the place cannot be written.
        """
        if new_secret is None:
            raise InputError("the new secret is None: pass a long random value.")
        old = self._shelf
        secret = find_secret(new_secret, old.place.secret_source)
        new = Shelf(old.place, old.namespace, secret, old.ttl, old.quota, old.tiers)
        if new.folder == old.folder:
            raise InputError("the new secret is the one that the store has already: nothing was changed.")
        report = rotation.rotate(old, new, drop=drop, progress=progress)
        self._shelf = new
        return report

    def copy_to(
        self,
        other: GistStore,
        *,
        quantise: Kind | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Rotation:
        """Copy everything to another store: another place, namespace, secret or quantisation.

        Nothing is compressed. What is in the other store already is not copied again, so a run that was interrupted
        goes on where it was.

        Args:
            other: Where to; its own quantisation is not looked at.
            quantise: `int8` or `int4` for memories that have another one; None to copy bit by bit.
            progress: Called after each memory with how many are done, and how many there are.

        Returns:
            New markers by old ones, and what could not be copied: memories whose new id needs a source record.

        Raises:
            InputError: If there is no such quantisation, or `other` is no store.
            StoreError: If a place fails.
        """
        if not isinstance(other, GistStore):
            raise InputError(f"other is {other!r:.200}, but must be a store: open it with GistStore.open.")
        kind = None if quantise is None else check_kind(quantise)
        return rotation.copy(self._shelf, other._shelf, kind, progress)

    def stats(self) -> StoreStats:
        """Count what is there."""
        sizes = self._shelf.entries()
        usage = self._shelf.place.usage()
        counts = Counter(key[key.rindex(".") :] for key, _ in sizes)
        return StoreStats(
            n_memories=counts[GIST],
            n_sources=counts[SOURCE],
            n_records=counts[RECORD],
            n_bytes=sum(size for _, size in sizes),
            n_total_bytes=usage.n_bytes,
            max_bytes=usage.max_bytes,
            quota=self._shelf.quota,
            n_hits=self._n_hits,
            n_misses=self._n_misses,
            n_evicted=usage.n_evicted,
            tiers=self._shelf.tiers.stats(),
        )

    def _kind(self, quantise: Quantise | None) -> Kind | None:
        """Return how memories are to be stored: what the caller says, else the store's setting."""
        if quantise is None:
            return self.quantise
        return None if quantise == "none" else check_kind(quantise)
