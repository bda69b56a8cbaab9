"""From turns to memories: count them, plan them, compress what the plan wants and nothing else.

Is        `Maker`: engine, rendering and settings of a session; every method returns a new `State`.
Flow      engine, store, rendering, state -> [making] -> session.
Change    when a segment is compressed, what it is compressed from.
Not here  the order of ratios -> layout/session_plan.py; what callers ask for -> session.py.
Holds     a memory is made of its own segment alone, so it does not matter which other turns there are, or were.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import CorruptGistError, GistNotFoundError, MemoryMismatchError
from ultragist_rag.layout.session_plan import SessionPlan
from ultragist_rag.memory.ingest import verbatim_tokens
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.session.pages import Archive
from ultragist_rag.session.rendering import Rendering
from ultragist_rag.session.settings import SessionSettings
from ultragist_rag.session.state import Held, Part, State, Turn, planned
from ultragist_rag.session.turns import Said
from ultragist_rag.store import GistStore
from ultragist_rag.store.quantise import as_stored
from ultragist_rag.types import TokenIds

__all__ = ["Maker"]

_log = logging.getLogger(__name__)


class Maker:
    """Makes states of one session."""

    def __init__(self, engine: UltraGist, rendering: Rendering, settings: SessionSettings, store: GistStore) -> None:
        """Make memories with an engine.

        Args:
            engine: The engine.
            rendering: How turns are written.
            settings: Of the session.
            store: Where documents may be that were compressed before.
        """
        self.engine, self.rendering, self.settings, self.store = engine, rendering, settings, store
        self.n_compressed_tokens = 0
        self.issued: set[str] = set()
        """Markers of memories that were stored since the session was saved."""

        self._warned = False

    @cached_property
    def empty(self) -> SessionPlan:
        """A plan without segments."""
        return self.settings.plan(self.engine.config)

    def copy(self) -> Maker:
        """Return one that counts for itself."""
        other = Maker(self.engine, self.rendering, self.settings, self.store)
        other._warned = self._warned
        return other

    def measure(self, number: int, said: Said, **about: Any) -> Turn:
        """Return what is known of a turn without reading it again.

        Raises:
            InputError: If it cannot be rendered.
        """
        documents = self._documents(said)
        lengths = [len(self._ids(document)) for document in documents]
        extras = verbatim_tokens(self.engine, documents, self.settings.verbatim)
        return Turn(number, tuple(lengths), tuple(extras) if any(extras) else (), **about)

    def grown(self, state: State, added: Sequence[tuple[Turn, Said]]) -> State:
        """Return a state with more turns behind the others, not settled yet."""
        plan = state.plan.copy()
        for turn, _ in added:
            for entry in turn.entries():
                plan.append(entry)
        return replace(
            state,
            archive=state.archive.append([(turn.id, said) for turn, said in added]),
            turns=(*state.turns, *(turn for turn, _ in added)),
            next_id=max((turn.id + 1 for turn, _ in added), default=state.next_id),
            plan=plan,
        )

    def without(self, state: State, gone: Collection[int]) -> State:
        """Return a state as if some turns had never been."""
        turns = tuple(turn for turn in state.turns if turn.id not in gone)
        return self.replanned(replace(state, archive=state.archive.without(gone)), turns)

    def replanned(self, state: State, turns: Iterable[Turn]) -> State:
        """Return a state with other turns, all of which are in the archive."""
        turns = tuple(turns)
        return self.settle(replace(state, turns=turns, plan=planned(self.empty, turns)))

    def measured_again(self, state: State) -> State:
        """Return a state whose turns are counted anew, for another tokenizer or template; its memories are void."""
        turns = [
            replace(self.measure(turn.id, said), pinned=turn.pinned, key=turn.key, digest=turn.digest)
            for turn, (_, said) in zip(state.turns, state.archive, strict=True)
        ]
        return replace(state, turns=tuple(turns), plan=planned(self.empty, turns), held={})

    def check_pins(self, turns: Iterable[Turn]) -> None:
        """Refuse more pinned turns than there are slots for, also if some of them are still tokens.

        Raises:
            ContextOverflowError: If there are too many.
        """
        plan = SessionPlan(self.settings.slots, self.settings.ladder[:1], self.empty.window)
        for turn in turns:
            for entry in turn.entries() if turn.pinned else ():
                plan.append(entry)

    def settle(self, state: State, found: Mapping[Part, Held] | None = None) -> State:
        """Return a state with the memories that its plan wants: those that it has, and new ones.

        Args:
            state: With a plan.
            found: Memories that may serve besides those of the state.

        Returns:
            The state, ready.
        """
        self.warn(state)
        there = {**state.held, **(found or {})}
        wanted = state.wanted
        held = {part: there[part] for part, ratio in wanted.items() if part in there and there[part].ratio == ratio}
        missing = {part: ratio for part, ratio in wanted.items() if part not in held}
        return replace(state, held=held | self.make(state.archive, missing))

    def resume(self, state: State, found: Mapping[Part, Held]) -> State:
        """Settle a state that was saved; of an archive that it had already nothing is said."""
        self._warned = _has_archive(state)
        return self.settle(state, found)

    def make(self, archive: Archive, wanted: Mapping[Part, int]) -> dict[Part, Held]:
        """Compress segments, each by itself.

        Args:
            archive: With their texts.
            wanted: Ratio of each segment.

        Returns:
            Their memories.
        """
        parts = sorted(wanted)
        documents = self._documents_of(archive, parts)
        held = {part: found for part in parts if (found := self._find(documents[part], wanted[part])) is not None}
        missing = [part for part in parts if part not in held]
        memories = self._compress([documents[part] for part in missing], [wanted[part] for part in missing])
        made = zip(missing, memories, strict=True)
        return held | {part: self.as_stored(Held(memory, wanted[part])) for part, memory in made}

    def fetch(self, archive: Archive, wanted: Mapping[Part, tuple[int, str]]) -> dict[Part, Held]:
        """Read memories from the store; those that are gone, damaged or of another model are left out."""
        read = {part: memory for part, (_, marker) in wanted.items() if (memory := self._get(marker)) is not None}
        documents = self._documents_of(archive, sorted(part for part, one in read.items() if one.source_ids is None))
        return {
            part: Held(self._known(memory, documents[part]) if part in documents else memory, *wanted[part])
            for part, memory in read.items()
        }

    def as_stored(self, held: Held) -> Held:
        """Return a memory that is not in the store yet as it will be read from there."""
        exact, kind = held.exact or held.memory, self.store.quantise
        return Held(exact, held.ratio) if kind is None else Held(as_stored(exact, kind), held.ratio, exact=exact)

    def put(self, archive: Archive, part: Part, held: Held) -> Held:
        """Store a memory, under the marker of its document where it is one."""
        if held.marker is not None and held.marker in self.store:
            return held
        texts = self.rendering.texts(archive[part[0]], self.settings.segment_tokens)
        text = None if texts is None else texts[part[1]]
        marker = self.store.put(held.exact or held.memory, text, ratio=held.ratio)
        self.issued.add(marker)
        return replace(held, marker=marker, exact=None)

    def raw(self, state: State) -> list[TokenIds]:
        """Return the ids of the newest segments."""
        rows: list[TokenIds] = []
        for number, several in groupby(state.recent, key=lambda part: part[0]):
            parts = self.rendering.parts(state.archive[number], self.settings.segment_tokens)
            rows += [parts[place] for _, place in several]
        return rows

    def warn(self, state: State) -> None:
        """Say so, once, if turns leave the memory for the archive."""
        if self._warned or not _has_archive(state):
            return
        self._warned = True
        message = (
            f"the session has more turns than {self.settings.slots} slots can hold: the oldest ones are in the archive "
            "only from now on. Ask with select=... to retrieve them, or make sessions with more slots."
        )
        _log.warning(message)
        warnings.warn(message, stacklevel=5)

    def _find(self, document: str | Tensor, ratio: int) -> Held | None:
        """Return the memory of a document that was compressed before, for another session perhaps."""
        if not isinstance(document, str):
            return None
        marker = self.store.find(document, self.engine, ratio, **self._more)
        memory = None if marker is None else self._get(marker)
        return None if memory is None else Held(self._known(memory, document), ratio, marker)

    def _get(self, marker: str) -> GistMemory | None:
        try:
            return self.store.get(marker, self.engine)
        except (GistNotFoundError, CorruptGistError, MemoryMismatchError):
            _log.info("a memory of the session is made again")
            return None

    @property
    def _more(self) -> dict[str, Any]:
        return {} if self.settings.verbatim is None else {"verbatim": self.settings.verbatim}

    def _known(self, memory: GistMemory, document: str | Tensor) -> GistMemory:
        """Give a memory the token ids that a store without texts does not keep."""
        return memory if memory.source_ids is not None else replace(memory, source_ids=self._ids(document).int())

    def _documents_of(self, archive: Archive, parts: Sequence[Part]) -> dict[Part, str | Tensor]:
        """Return the documents of segments, which are in order."""
        documents: dict[Part, str | Tensor] = {}
        for number, several in groupby(parts, key=lambda part: part[0]):
            of_turn = self._documents(archive[number])
            documents.update((part, of_turn[part[1]]) for part in several)
        return documents

    def _documents(self, said: Said) -> list[str | Tensor]:
        texts = self.rendering.texts(said, self.settings.segment_tokens)
        if texts is not None:
            return list(texts)
        lead = self.engine.lead_token
        in_front = torch.tensor([] if lead is None else [lead], dtype=torch.long)
        # A lead token in front of ids counts as standing there already: what a segment itself begins with stays.
        return [torch.cat((in_front, ids)) for ids in self.rendering.parts(said, self.settings.segment_tokens)]

    def _ids(self, document: str | Tensor) -> TokenIds:
        if isinstance(document, str):
            return self.rendering.codec.encode(document)
        return document if self.engine.lead_token is None else document[1:]

    def _compress(self, documents: Sequence[str | Tensor], ratios: Sequence[int]) -> list[GistMemory]:
        if not documents:
            return []
        memories = self.engine.compress(documents, ratio=list(ratios), **self._more)
        self.n_compressed_tokens += sum(len(self._ids(document)) for document in documents)
        return [memory.seal() for memory in memories]


def _has_archive(state: State) -> bool:
    return len(state.wanted) + len(state.recent) < sum(len(turn.lengths) for turn in state.turns)
