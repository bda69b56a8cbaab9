"""What a session is at one moment: numbers of its turns, their plan, the memories that stand for them.

Is        `State`, which never changes, so that an error half way through a change changes nothing.
Flow      layout.session_plan, pages -> [state] -> saving, session.
Change    what is known of a turn without reading it.
Not here  making memories -> session.py; what a turn says -> turns.py, pages.py.
Holds     plan and memories depend on the turns that are there alone, not on those that were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ultragist_rag.errors import InputError
from ultragist_rag.layout.session_plan import Entry, SessionPlan
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.session.pages import Archive
from ultragist_rag.session.turns import Said

__all__ = ["Held", "Part", "SessionStats", "SessionTurn", "State", "Turn", "planned"]

Part = tuple[int, int]
"""Id of a turn, and the number of a segment in it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is known of a turn without reading it.

    Attributes:
        id: Higher than that of every earlier turn.
        lengths: Tokens of each of its segments.
        extras: Slots of each segment for tokens kept as they are; empty for none.
        pinned: Whether it stays at the lowest ratio.
        key: The name that `sync` was given for it.
        digest: Of what it says; with a key only.
    """

    id: int
    lengths: tuple[int, ...]
    extras: tuple[int, ...] = ()
    pinned: bool = False
    key: str | None = None
    digest: str | None = None

    def entries(self) -> Iterator[Entry]:
        """Return all segments as the plan takes them."""
        return map(self.entry, range(len(self.lengths)))

    def entry(self, number: int) -> Entry:
        """Return a segment as the plan takes it."""
        extra = self.extras[number] if self.extras else 0
        return Entry((self.id, number), self.lengths[number], self.pinned, extra)


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of a segment.

    Attributes:
        memory: Keys and values.
        ratio: At which it was asked for.
        marker: Where it lies in the store; None if it does not.
        exact: What is to be stored, where the store quantises and `memory` is what will be read.
    """

    memory: GistMemory
    ratio: int
    marker: str | None = None
    exact: GistMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A session between two changes.

    Attributes:
        archive: What was said.
        plan: Ratios of the segments.
        turns: All of them, oldest first.
        held: Memories by segment, as the plan wants them.
        next_id: Of the turn that comes next.
    """

    archive: Archive
    plan: SessionPlan
    turns: tuple[Turn, ...] = ()
    held: Mapping[Part, Held] = field(default_factory=dict)
    next_id: int = 0

    def turn(self, number: int) -> Turn:
        """Return a turn.

        Raises:
            InputError: If there is none with this id.
        """
        for turn in reversed(self.turns):
            if turn.id == number:
                return turn
        raise InputError(f"there is no turn {number!r} in this session: see `turns()` for those there are.")

    @property
    def wanted(self) -> dict[Part, int]:
        """Segments that are to be memories, and their ratios."""
        return cast(dict[Part, int], self.plan.ratios())

    @property
    def recent(self) -> list[Part]:
        """Segments that stay tokens, oldest first."""
        return cast(list[Part], self.plan.recent_names())


def planned(empty: SessionPlan, turns: Iterable[Turn]) -> SessionPlan:
    """Return the plan of turns, from a plan without segments, which stays as it is."""
    plan = empty.copy()
    for turn in turns:
        for entry in turn.entries():
            plan.append(entry)
    return plan


@dataclass(frozen=True, slots=True)
class SessionTurn:
    """One turn, as `GistSession.turns` tells it.

    Attributes:
        id: Its number; never given to another turn of the session.
        role: Who spoke.
        content: The text.
        state: `recent` (tokens), `compressed` (slots), `archived` (text in the store only), or `mixed` for a long turn
            whose segments differ.
        pinned: Whether it stays at the lowest ratio.
        key: The name that `sync` was given for it.
        said: The whole turn, tool calls included, as plain JSON values.
    """

    id: int
    role: str
    content: str
    state: str
    pinned: bool
    key: str | None
    said: Mapping[str, Any]

    @classmethod
    def of(cls, turn: Turn, said: Said, state: str) -> SessionTurn:
        """Put together what is known of a turn."""
        return cls(turn.id, said.role, said.content, state, turn.pinned, turn.key, said.to_dict())


@dataclass(frozen=True, slots=True)
class SessionStats:
    """What a session takes and has done.

    Attributes:
        n_turns: Turns, the archived ones included.
        n_tokens: Their tokens.
        n_slots: Memory slots in use.
        slots: Slots that there are.
        n_recent_tokens: Tokens of the newest turns, which stay as they are.
        n_pinned: Turns that are pinned.
        n_archived: Turns of which no segment is in the memory any more; their text is in the archive.
        n_segments: Segments at each ratio of the ladder.
        n_compressed_tokens: Tokens that this object has compressed since it was made or loaded; a segment that moves to
            a higher ratio counts again.
    """

    n_turns: int
    n_tokens: int
    n_slots: int
    slots: int
    n_recent_tokens: int
    n_pinned: int
    n_archived: int
    n_segments: Mapping[int, int]
    n_compressed_tokens: int
