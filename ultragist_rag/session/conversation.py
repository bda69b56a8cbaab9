"""The turns of a session: adding them, taking them away, telling what there is.

Is        `Conversation`, the part of a session that neither asks nor saves.
Flow      making, state -> [conversation] -> session.
Change    what can be done to turns, what is told about them.
Not here  asking, saving, forks -> session.py; which memories that takes -> making.py.
Holds     what is there is what would be there if turns that were forgotten had never been; an error changes nothing;
          nobody sees a state before its memories are made.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.background import in_background
from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import with_lead
from ultragist_rag.session.making import Maker
from ultragist_rag.session.relevance import Relevance, divide
from ultragist_rag.session.state import Held, Part, SessionStats, SessionTurn, State, planned
from ultragist_rag.session.turns import Said

__all__ = ["Conversation"]


class Conversation:
    """Turns within a budget of slots. Threads may share one."""

    def __init__(self, maker: Maker, state: State, relevance: Relevance | None = None) -> None:
        """Begin with a state; with embeddings of its segments, these can be selected."""
        self._maker, self._relevance = maker, relevance
        self._lock = threading.RLock()
        self._now, self._is_settled = state, True
        self._pending: Future[State] | None = None

    @property
    def _state(self) -> State:
        """The state with all its memories: those that are made in the background are waited for.

        What goes wrong there is raised here, once; the turns are there, and the next one who asks makes the memories.
        """
        with self._lock:
            state = self._latest()
            if not self._is_settled:
                self._state = state = self._maker.settle(state)
            return state

    @_state.setter
    def _state(self, state: State) -> None:
        self._now, self._is_settled = state, True

    def _latest(self, *, quiet: bool = False) -> State:
        """Return the state, perhaps without memories that could not be made; `quiet` does not say so."""
        if self._pending is not None:
            pending, error = self._pending, self._pending.exception()  # waits
            self._pending = None
            if error is None:
                self._state = pending.result()
            elif not quiet:
                raise error
        return self._now

    def append(
        self,
        role: str,
        content: str | None,
        *,
        tool_calls: Sequence[dict[str, Any]] = (),
        tool_call_id: str | None = None,
        name: str | None = None,
    ) -> int:
        """Add a turn.

        Args:
            role: Such as user, assistant, tool or system.
            content: The text; None beside tool calls.
            tool_calls: Of an assistant: `{"name", "arguments", "id"}` each.
            tool_call_id: Of a tool: which call it answers.
            name: Of the speaker.

        Returns:
            Id of the turn.

        Raises:
            InputError: If the turn is malformed, or the chat template has no place for it.
            ContextOverflowError: If pinned turns take more slots than there are.
            StoreError: If a full page of the archive cannot be written.
        """
        said = Said(role=role, content=content or "", tool_calls=tool_calls, tool_call_id=tool_call_id, name=name)
        return self._append([said])[0]

    def sync(self, turns: Sequence[tuple[str, str, str]]) -> None:
        """Bring the session to a list of turns that somebody else keeps.

        Turns that are the same as far as both go stay, all others are forgotten, and new ones are appended.

        Args:
            turns: Key, role and content of each, oldest first; every key once.

        Raises:
            InputError: If a key comes twice, or a turn is malformed.
        """
        wanted = [(key, Said(role=role, content=content)) for key, role, content in turns]
        if len({key for key, _ in wanted}) < len(wanted):
            raise InputError("a key comes twice in the turns to sync: every turn needs its own.")
        with self._lock:
            state = self._latest()
            places = {turn.key: place for place, turn in enumerate(state.turns)}
            kept: list[int] = []
            for key, said in wanted:
                place = places.get(key, -1)
                if place <= (kept[-1] if kept else -1) or state.turns[place].digest != said.digest:
                    break
                kept.append(place)
            left = tuple(state.turns[place] for place in kept)
            gone = {turn.id for turn in state.turns} - {turn.id for turn in left}
            if gone:
                plan = planned(self._maker.empty, left)
                state = replace(state, turns=left, plan=plan, archive=state.archive.without(gone))
            new = wanted[len(kept) :]
            if gone or new:
                self._grow(state, [said for _, said in new], [key for key, _ in new])

    def rewind(self, turn: int) -> None:
        """Go back to the moment before a turn: it and all later ones are forgotten.

        Raises:
            InputError: If there is no such turn.
        """
        with self._lock:
            self._latest().turn(turn)
            self._forget({other.id for other in self._now.turns if other.id >= turn})

    def forget(self, turn: int) -> None:
        """Take a turn out, as if it had never been; its text leaves the store at the next `save`.

        Raises:
            InputError: If there is no such turn.
        """
        with self._lock:
            self._forget({self._latest().turn(turn).id})

    def pin(self, turn: int, pinned: bool = True) -> None:
        """Keep a turn at the lowest ratio for ever, or no longer.

        Args:
            turn: Its id.
            pinned: Whether to keep it.

        Raises:
            InputError: If there is no such turn.
            ContextOverflowError: If pinned turns would take more slots than there are.
        """
        with self._lock:
            state = self._latest()
            found = state.turn(turn)
            turns = [replace(other, pinned=pinned) if other is found else other for other in state.turns]
            self._maker.check_pins(turns)
            self._state = self._maker.replanned(state, turns)

    def pieces(self, question: str | None = None, *, select: int | None = None) -> list[Tensor | GistMemory]:
        """Return the prompt of a question, as `UltraGist.generate` takes it.

        Args:
            question: What the user says; None for the conversation alone.
            select: Segments that are shown besides pinned and recent ones: those that are nearest to the question, be
                they compressed or in the archive only. None for all that are compressed.

        Returns:
            Token ids of shape (tokens,) and memories in reading order.

        Raises:
            InputError: If segments are to be selected without question or embeddings.
        """
        if select is None:
            return self._pieces(None if question is None else Said(role="user", content=question))
        if question is None:
            raise InputError("segments are selected for a question: give one.")
        return self._pieces(Said(role="user", content=question), select)

    def turns(self) -> list[SessionTurn]:
        """Return all turns, oldest first, with their texts, archived ones too."""
        with self._lock:
            state = self._state
            recent = set(state.recent)
            found = []
            for turn, (_, said) in zip(state.turns, state.archive, strict=True):
                parts = [(turn.id, number) for number in range(len(turn.lengths))]
                states = {_place(part, state, recent) for part in parts}
                found.append(SessionTurn.of(turn, said, states.pop() if len(states) == 1 else "mixed"))
            return found

    def stats(self) -> SessionStats:
        """Count what there is."""
        with self._lock:
            state, settings = self._state, self._maker.settings
            here = {number for number, _ in state.held} | {number for number, _ in state.recent}
            at = Counter(held.ratio for held in state.held.values())
            return SessionStats(
                n_turns=len(state.turns),
                n_tokens=sum(sum(turn.lengths) for turn in state.turns),
                n_slots=sum(held.memory.slots for held in state.held.values()),
                slots=settings.slots,
                n_recent_tokens=state.plan.n_recent_tokens,
                n_pinned=sum(turn.pinned for turn in state.turns),
                n_archived=sum(turn.id not in here for turn in state.turns),
                n_segments={ratio: at[ratio] for ratio in settings.ladder},
                n_compressed_tokens=self._maker.n_compressed_tokens,
            )

    def recent_keys(self) -> list[str]:
        """Return the keys, given to `sync`, of the newest turns: those that stay as they are."""
        with self._lock:
            whole = self._whole()
            return [turn.key for turn in self._state.turns if turn.id in whole and turn.key is not None]

    def markers(self) -> list[str]:
        """Return markers of the memories of all turns but the newest and the archived ones, in reading order.

        The memories are stored, so that whoever has the store can show them. What is only in part among the newest is
        shown by markers as a whole.

        Raises:
            InputError: If the session does not write its turns as plain texts.
            StoreError: If a memory cannot be written.
        """
        if self._maker.rendering.kind != "plain":
            raise InputError("markers stand for texts: make the session with template='plain'.")
        with self._lock:
            state, whole = self._state, self._whole()
            split = [part for part in state.recent if part[0] not in whole]
            ratio = self._maker.settings.ladder[0]
            shown = {**state.held, **self._maker.make(state.archive, dict.fromkeys(split, ratio))}
            shown = self._put(state, shown)
            self._state = replace(state, held={part: shown[part] for part in state.held})
            return [str(shown[part].marker) for part in sorted(shown)]

    def _whole(self) -> set[int]:
        """Return the ids of turns of which all segments are among the newest."""
        counts = Counter(number for number, _ in self._state.recent)
        return {number for number, count in counts.items() if count == len(self._state.turn(number).lengths)}

    def _put(self, state: State, held: dict[Part, Held]) -> dict[Part, Held]:
        return {part: self._maker.put(state.archive, part, one) for part, one in held.items()}

    def _append(self, said: Sequence[Said], *, later: bool = False) -> list[int]:
        with self._lock:
            state = self._latest(quiet=later)  # an answer that was given is kept; what is missing is made with its own
            return self._grow(state, said, [None] * len(said), later=later)

    def _grow(
        self, state: State, said: Sequence[Said], keys: Sequence[str | None], *, later: bool = False
    ) -> list[int]:
        """Add turns; `later` makes their memories in the background."""
        added = []
        for number, (one, key) in enumerate(zip(said, keys, strict=True), start=state.next_id):
            digest = None if key is None else one.digest
            added.append((self._maker.measure(number, one, key=key, digest=digest), one))
        grown = self._maker.grown(state, added)
        if later:
            self._maker.warn(grown)
            make = partial(self._maker.settle, grown)  # without a reference to the session
            self._pending = in_background(make, "ultragist-session")
            self._now, self._is_settled = grown, False
        else:
            self._state = self._maker.settle(grown)
        return [turn.id for turn, _ in added]

    def _forget(self, gone: Collection[int]) -> None:
        self._state = self._maker.without(self._now, gone)

    def _pieces(self, question: Said | None, select: int | None = None) -> list[Tensor | GistMemory]:
        with self._lock:
            state = self._state
            raw = self._maker.raw(state)
            held = state.held if question is None or select is None else self._select(state, question.content, select)
        rendering, lead = self._maker.rendering, self._maker.engine.lead_token
        behind = [*raw, *([] if question is None else [rendering.question(question)])]
        pieces: list[Tensor | GistMemory] = [rendering.head] if len(rendering.head) else []
        pieces += [held[part].memory for part in sorted(held)]
        return with_lead([*pieces, torch.cat(behind)] if behind else pieces, lead)

    def _select(self, state: State, question: str, select: int) -> dict[Part, Held]:
        """Return the memories of pinned segments and of those nearest to a question, made again where need be."""
        if self._relevance is None:
            raise InputError("the session has no embeddings to select by: make or load it with embeddings=...")
        turns = {turn.id: turn for turn in state.turns}
        pinned = [part for part in state.held if turns[part[0]].pinned]
        best = self._relevance.best(state, question, select, {*state.recent, *pinned})
        held = {part: state.held[part] for part in [*pinned, *best] if part in state.held}
        room = self._maker.settings.slots - sum(one.memory.slots for one in held.values())
        entries = [turns[number].entry(place) for number, place in best if (number, place) not in held]
        return held | self._maker.make(state.archive, divide(state.plan, entries, room))


def _place(part: Part, state: State, recent: Collection[Part]) -> str:
    return "recent" if part in recent else "compressed" if part in state.held else "archived"
