"""The text archive of a session: pages of turns in a store, and the turns that fill no page yet.

Is        `Archive`, which never changes: what adds or takes away turns returns a new one and writes its pages.
Flow      store.records, turns -> [pages] -> saving, session.
Change    how many turns make a page, what stands in one.
Not here  which pages a saved session needs -> saving.py; memories of turns -> session.py.
Holds     a page is never rewritten: its name follows from what it says; few pages are in the process at a time.
"""

from __future__ import annotations

import hashlib
import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from weakref import WeakSet

from ultragist_rag.errors import CorruptGistError
from ultragist_rag.session.turns import Said
from ultragist_rag.store.records import Records
from ultragist_rag.store.store import GistStore

__all__ = ["Archive", "PAGE_KIND", "Page", "Pages"]

PAGE_KIND = "page"
_N_TURNS, _N_CHARACTERS = 64, 100_000
"""A page is full with so many turns, or characters."""

_N_CACHED = 4

Note = Callable[[Sequence[tuple[int, Said]]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was read.

    Attributes:
        turns: What was said, by the ids of turns.
        vectors: What `Relevance.note` said about them; None if nothing did.
    """

    turns: Mapping[int, Said]
    vectors: Mapping[str, Any] | None = None


class Pages:
    """Reads and writes the pages of a session and its forks, and knows which ones it wrote."""

    def __init__(self, store: GistStore, family: str, note: Note | None = None) -> None:
        """Keep pages among the records of a store.

        Args:
            store: The store.
            family: Of sessions that are forks of each other; others never share a page.
            note: Makes vectors of turns that are kept with their page; None for none.
        """
        self._store = store
        self.note = note
        self.family = family
        self.written: set[str] = set()
        self._sessions: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()
        self.read = lru_cache(_N_CACHED)(self._read)

    @property
    def records(self) -> Records:
        """Those of the store, under the secret that it has now."""
        return self._store.records

    def join(self, session: Any) -> None:
        """Count a session among those that use these pages, as long as it is there."""
        with self._lock:
            self._sessions.add(session)

    def others(self, session: Any) -> list[Any]:
        """Return the other sessions that use these pages."""
        with self._lock:
            return [other for other in self._sessions if other is not session]

    def make(self, turns: Sequence[tuple[int, Said]]) -> tuple[str, dict[str, Any]]:
        """Return name and payload of a page, without writing it."""
        payload = {"family": self.family, "turns": [{"id": number, **said.to_dict()} for number, said in turns]}
        name = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:32]
        return name, payload

    def write(self, turns: Sequence[tuple[int, Said]]) -> str:
        """Write a page; return its name."""
        name, payload = self.make(turns)
        if self.note is not None:
            payload["vectors"] = self.note(turns)
        self.records.put(PAGE_KIND, {name: payload})
        self.written.add(name)
        return name

    def _read(self, name: str) -> Page:
        payload = self.records.get(PAGE_KIND, name)
        if payload is None:
            raise CorruptGistError(f"page {name} of a session is missing: restore it, or delete the session.")
        turns = {turn["id"]: Said.from_dict(turn) for turn in payload["turns"]}
        return Page(turns, payload.get("vectors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What was said, by the ids of turns.

    Attributes:
        pages: Where pages are kept.
        names: Of the pages, oldest first.
        firsts: Id of the first turn of each page.
        rest: Turns behind the last page.
    """

    pages: Pages
    names: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    rest: tuple[tuple[int, Said], ...] = ()

    def __getitem__(self, number: int) -> Said:
        """Return what was said in a turn."""
        if self.rest and number >= self.rest[0][0]:
            return dict(self.rest)[number]
        return self.pages.read(self.names[bisect_right(self.firsts, number) - 1]).turns[number]

    def __iter__(self) -> Iterator[tuple[int, Said]]:
        """Yield all turns, oldest first, with their ids."""
        for page in self.read():
            yield from page.turns.items()

    def read(self) -> Iterator[Page]:
        """Yield all pages, oldest first; the turns behind the last one, too."""
        yield from map(self.pages.read, self.names)
        if self.rest:
            yield Page(dict(self.rest))

    def append(self, turns: Sequence[tuple[int, Said]]) -> Archive:
        """Add turns; write the pages that are full.

        Args:
            turns: Ids, rising, and what was said.

        Returns:
            The longer archive.

        Raises:
            StoreError: If a page cannot be written.
        """
        names, firsts = list(self.names), list(self.firsts)
        rest = list(self.rest)
        for turn in turns:
            rest.append(turn)
            if len(rest) >= _N_TURNS or sum(len(said.content) for _, said in rest) >= _N_CHARACTERS:
                names.append(self.pages.write(rest))
                firsts.append(rest[0][0])
                rest = []
        return replace(self, names=tuple(names), firsts=tuple(firsts), rest=tuple(rest))

    def without(self, gone: Collection[int]) -> Archive:
        """Take turns away; write the pages that held them anew.

        Args:
            gone: Ids of turns.

        Returns:
            The shorter archive.

        Raises:
            StoreError: If a page cannot be written.
        """
        touched = {bisect_right(self.firsts, number) - 1 for number in gone}
        names, firsts = [], []
        for place, (name, first) in enumerate(zip(self.names, self.firsts, strict=True)):
            if place in touched:
                turns = self.pages.read(name).turns
                left = [turn for turn in turns.items() if turn[0] not in gone]
                if not left:
                    continue
                if len(left) < len(turns):
                    name, first = self.pages.write(left), left[0][0]
            names.append(name)
            firsts.append(first)
        rest = tuple(turn for turn in self.rest if turn[0] not in gone)
        return replace(self, names=tuple(names), firsts=tuple(firsts), rest=rest)

    def moved(self, pages: Pages) -> Archive:
        """Copy all pages to another place."""
        names = tuple(pages.write(list(self.pages.read(name).turns.items())) for name in self.names)
        return replace(self, pages=pages, names=names)
