"""GistSession: a conversation that never outgrows its slots.

Is        turns in, answers out; old turns are memories at rising ratios, the newest are tokens, the oldest an archive.
Flow      conversation, saving, asking -> [session] -> engine, integrations, the command line.
Change    how a session begins, is asked, is saved.
Not here  turns -> conversation.py; the plan -> layout/session_plan.py; what turns look like -> rendering.py.
Holds     a session that is loaded answers as the one that was saved.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, overload

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.memory.stream import TextStream
from ultragist_rag.rag.embeddings import Embeddings
from ultragist_rag.session.asking import SessionStream
from ultragist_rag.session.conversation import Conversation
from ultragist_rag.session.making import Maker
from ultragist_rag.session.pages import Archive, Pages
from ultragist_rag.session.relevance import Relevance
from ultragist_rag.session.rendering import TemplateChoice, make_rendering
from ultragist_rag.session.saving import Saving, delete_saved, read_manifest, saved_names, state_of
from ultragist_rag.session.settings import SessionSettings
from ultragist_rag.session.state import State
from ultragist_rag.session.turns import Said
from ultragist_rag.store import GistStore

__all__ = ["GistSession"]


class GistSession(Conversation):
    """Chat memory within a budget of slots. Make one with `UltraGist.session`, or `load` one. Threads may share it.

    Example:
        >>> session = gist.session(slots=512, recent=128)  # doctest: +SKIP
        >>> session.append("user", "My name is Ada.")  # doctest: +SKIP
        0
        >>> session.ask("Who am I?")  # doctest: +SKIP
        'Ada'
    """

    def __init__(
        self, maker: Maker, saving: Saving, state: State, relevance: Relevance | None, background: bool
    ) -> None:
        """Put a session together; `create` and `load` do."""
        super().__init__(maker, state, relevance)
        self._saving, self._background = saving, background
        state.archive.pages.join(self)

    @classmethod
    def create(  # noqa: PLR0913 - settings, by keyword
        cls,
        engine: UltraGist,
        *,
        slots: int | None = None,
        recent: int | None = None,
        store: GistStore | None = None,
        name: str | None = None,
        system: str | None = None,
        ladder: Sequence[int] | None = None,
        segment_tokens: int | None = None,
        verbatim: str | None = None,
        embeddings: Embeddings | None = None,
        template: TemplateChoice | None = None,
        background: bool = True,
    ) -> GistSession:
        """Begin a session.

        Args:
            engine: The engine; it needs a tokenizer.
            slots: Memory slots of all compressed turns together; None for 2048, or half of the model's positions.
            recent: Tokens of the newest turns, at least, that stay as they are; None for 512, or an eighth of the
                positions.
            store: Where archive and memories are kept; None for a store of its own in this process.
            name: Under which `save` saves it.
            system: Text at the head of every prompt. It is never compressed.
            ladder: Rising ratios that a turn goes through as it gets older; None for those of the config from its
                `ratio` on, or four that double from there.
            segment_tokens: Tokens of a segment at most; longer turns are cut.
            verbatim: Policy for tokens that are kept as they are inside compressed turns.
            embeddings: Make vectors of all segments, for `ask(..., select=...)`; they must need no fitting.
            template: `chat` for the chat template, `plain` for lines such as `user: text`; None for the template if
                there is one that can be used.
            background: Compress what an answer pushes out of the recent turns in a thread of its own, when the answer
                has been given; False: before it is given.

        Returns:
            The session, without turns.

        Raises:
            InputError: If an argument does not fit, or the store has a session of this name.
            ContextOverflowError: If slots, recent tokens, question and answer exceed the positions of the model.
        """
        chosen: dict[str, Any] = {"slots": slots, "recent": recent, "ladder": ladder, "segment_tokens": segment_tokens}
        settings = SessionSettings.choose(
            engine.config, engine.max_positions, **chosen, system=system, verbatim=verbatim
        )
        rendering = make_rendering(engine.tokenizer, template, system)
        settings.check_fit(len(rendering.head), engine.max_positions)
        store = GistStore.open("memory://") if store is None else _opened(store)
        maker = Maker(engine, rendering, settings, store)
        saving = Saving(store, secrets.token_hex(8))
        if name is not None:
            saving.check(name)
            saving.name = name
        relevance = _relevance(maker, embeddings)
        archive = Archive(pages=_pages(store, saving.family, relevance))
        return cls(maker, saving, State(archive=archive, plan=maker.empty), relevance, background)

    @classmethod
    def load(
        cls,
        engine: UltraGist,
        store: GistStore,
        name: str,
        *,
        embeddings: Embeddings | None = None,
        background: bool = True,
    ) -> GistSession:
        """Go on with a saved session.

        Memories that are in the store are read; the model only works for those that had to make room there, or were
        made by another model.

        Args:
            engine: The engine.
            store: Where the session was saved.
            name: Its name.
            embeddings: As for `create`; vectors that others made are made anew when they are needed.
            background: As for `create`.

        Returns:
            The session as it was.

        Raises:
            InputError: If there is no session of this name.
            CorruptGistError: If its manifest or a page of its archive is damaged.
            ContextOverflowError: If it does not fit into the positions of this model.
        """
        manifest = read_manifest(_opened(store), name)
        settings = SessionSettings.from_dict(manifest["settings"])
        rendering = make_rendering(engine.tokenizer, manifest["template"], settings.system)
        settings.check_fit(len(rendering.head), engine.max_positions)
        maker = Maker(engine, rendering, settings, store)
        relevance = _relevance(maker, embeddings)
        pages = _pages(store, manifest["family"], relevance)
        state, memories = state_of(manifest, pages, maker.empty)
        if manifest["rendered"] != _rendered(maker):
            state, memories = maker.measured_again(state), {}
        settled = maker.resume(state, maker.fetch(state.archive, memories))
        return cls(maker, Saving.of(store, name, manifest), settled, relevance, background)

    @staticmethod
    def names(store: GistStore) -> list[str]:
        """Return the names of the sessions in a store, sorted."""
        return saved_names(_opened(store))

    @staticmethod
    def delete(store: GistStore, name: str) -> bool:
        """Delete a session with all texts and memories that no fork of it needs; say whether there was one."""
        return delete_saved(_opened(store), name)

    @property
    def name(self) -> str | None:
        """Under which it is saved, if it is."""
        return self._saving.name

    @property
    def store(self) -> GistStore:
        """Where archive and memories are kept."""
        return self._saving.store

    @property
    def settings(self) -> SessionSettings:
        """What was chosen at the beginning."""
        return self._maker.settings

    @overload
    def ask(self, text: str, *, stream: Literal[False] = ..., select: int | None = ..., **decoding: Any) -> str: ...

    @overload
    def ask(self, text: str, *, stream: Literal[True], select: int | None = ..., **decoding: Any) -> SessionStream: ...

    def ask(
        self, text: str, *, stream: bool = False, select: int | None = None, **decoding: Any
    ) -> str | SessionStream:
        """Answer a question; question and answer become turns.

        Args:
            text: What the user says.
            stream: Give the answer as it is decoded. It becomes a turn when it is read to its end, or closed.
            select: As for `pieces`.
            decoding: Settings of `UltraGist.generate`, such as max_new_tokens, do_sample, stop, seed.

        Returns:
            The answer, or a stream of it.

        Raises:
            InputError: If a setting does not fit.
            ContextOverflowError: If question and answer do not fit into the positions that are left.
        """
        question = Said(role="user", content=text)
        pieces = self._pieces(question, select)
        decoding = {"stop": self._maker.rendering.stop, **decoding}
        if stream:
            texts = self._maker.engine.stream(pieces, **decoding)
            assert isinstance(texts, TextStream)
            return SessionStream(texts, lambda said: self._append([question, _answer(said)], later=self._background))
        said = self._maker.engine.generate(pieces, **decoding)
        if not isinstance(said, str):
            raise InputError("a session takes one answer as text: leave out num_return_sequences and return_ids.")
        answer = _answer(said)
        self._append([question, answer], later=self._background)
        return answer.content

    def fork(self, name: str | None = None) -> GistSession:
        """Return a session with the same turns that goes on by itself; the two share what they have in common.

        Args:
            name: Under which `save` saves it.

        Raises:
            InputError: If the store has a session of this name.
        """
        with self._lock:
            saving = Saving(self.store, self._saving.family, forked_from=self._saving.name)
            if name is not None:
                saving.check(name)
                saving.name = name
            fork = GistSession(self._maker.copy(), saving, self._state, self._relevance, self._background)
            fork._lock = self._lock  # a page that one has written and not shown yet is nobody's to the other
            return fork

    def save(self, name: str | None = None, store: GistStore | None = None) -> None:
        """Write everything that `load` needs, and delete what is needed no longer.

        Args:
            name: Of the session; None for the one it has.
            store: Where to; None for where its archive is. Given another one, the session moves there.

        Raises:
            InputError: If there is no name, or it is that of another session.
            StoreError: If it cannot be written, or the session was saved by another process since it was loaded.
        """
        with self._lock:
            name = name or self.name
            if not name:
                raise InputError("the session has no name: give one to save it under.")
            if store is not None and store is not self.store:
                Saving(_opened(store), self._saving.family).check(name)
                self._move(store)
            self._saving.check(name)
            held = self._put(self._state, dict(self._state.held))
            self._state = replace(self._state, held=held)
            self._saving.markers |= self._maker.issued | {str(one.marker) for one in held.values()}
            self._maker.issued.clear()
            about = {
                "settings": self.settings.to_dict(),
                "template": self._maker.rendering.kind,
                "rendered": _rendered(self._maker),
            }
            others = self._state.archive.pages.others(self)
            in_use = {name for other in others for name in other._in_use()}
            self._saving.write(name, self._state, about, in_use)

    def _in_use(self) -> set[str]:
        pending = self._pending  # what goes wrong there is told to whoever asks this session
        state = self._now if pending is None or pending.exception() is not None else pending.result()
        return {*state.archive.names, *(one.marker for one in state.held.values() if one.marker)}

    def _move(self, store: GistStore) -> None:
        pages = _pages(store, self._saving.family, self._relevance)
        archive = self._state.archive.moved(pages)
        self._maker.store = store
        held = {part: self._maker.as_stored(one) for part, one in self._state.held.items()}
        self._state = replace(self._state, archive=archive, held=held)
        self._saving = Saving(store, self._saving.family)
        self._maker.issued.clear()
        pages.join(self)


def _opened(store: object) -> GistStore:
    if not isinstance(store, GistStore):
        raise InputError(f"store is {store!r}, but must be open: pass GistStore.open(...).")
    return store


def _relevance(maker: Maker, embeddings: object) -> Relevance | None:
    if embeddings is None:
        return None
    if not isinstance(embeddings, Embeddings):
        raise InputError(f"embeddings is {embeddings!r}, but must have the methods of ultragist_rag.rag.Embeddings.")
    return Relevance(embeddings, maker.rendering, maker.settings.segment_tokens)


def _pages(store: GistStore, family: str, relevance: Relevance | None) -> Pages:
    return Pages(store, family, relevance.note if relevance else None)


def _rendered(maker: Maker) -> str:
    """Return what the lengths of turns depend on."""
    model = f" {maker.engine.fingerprint}" if maker.settings.verbatim else ""  # it may choose tokens that are kept
    return f"{maker.engine.tokenizer_fingerprint} {maker.rendering.digest}{model}"


def _answer(said: str) -> Said:
    return Said(role="assistant", content=said.strip())
