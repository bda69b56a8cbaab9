"""Plan which ratio each segment of a session has, so that all stay within a number of slots.

Is        integers in, ratios out. `SessionPlan` takes one segment after the other; `plan_session` replays them all.
Flow      errors, budget -> [session_plan] -> session.
Paper     none; the authors' adaptive ratio is chosen once for a sequence and then overruns the positions.
Change    when a segment moves to a higher ratio.
Not here  texts, memories and their files -> session.
Holds     the slots of all segments never exceed the budget; of two unpinned segments the older has no lower ratio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.layout.budget import slots_of

__all__ = ["ARCHIVED", "RECENT", "Entry", "SessionPlan", "plan_session"]

ARCHIVED = 0
"""Stands for a ratio where a segment takes no slots."""

RECENT = 1
"""Stands for a ratio where a segment is tokens, one slot each, and not part of the budget."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One segment.

    Attributes:
        name: Whatever tells it from the others.
        length: Its tokens.
        pinned: Whether it stays at the lowest ratio.
        extra: Slots that it takes at any ratio, for tokens that are kept as they are.
    """

    name: Hashable
    length: int
    pinned: bool = False
    extra: int = 0


class SessionPlan:
    """The ratios of a session that grows.

    The newest segments are tokens: as few as have `recent` tokens together. The next older one begins at the lowest
    ratio of the ladder. As long as there are too many slots, the lowest ratio that takes more than its share, equal for
    all ratios, of what pinned segments leave, gives its oldest segment to the next ratio, and the highest ratio gives
    it away. So a segment is moved at most once for every ratio, and where it stands depends on the segments alone.

    Example:
        >>> plan = SessionPlan(slots=8, ladder=(2, 4), window=16)
        >>> for name in "abcd":
        ...     plan.append(Entry(name, 8))
        >>> sorted(plan.ratios().items())
        [('b', 4), ('c', 4), ('d', 2)]
    """

    def __init__(self, slots: int, ladder: Sequence[int], window: int, recent: int = 0) -> None:
        """Plan for a session without segments.

        Args:
            slots: Slots that all segments may take together.
            ladder: Ratios, the lowest first, each above 1.
            window: Raw tokens that are condensed in one step.
            recent: Tokens that stay as they are.

        Raises:
            InputError: If an argument is out of range.
        """
        numbers = (*ladder, window, slots + 1, recent + 1)
        if any(isinstance(number, bool) or not isinstance(number, int) or number < 1 for number in numbers):
            raise InputError(f"slots {slots!r}, recent {recent!r}, ladder {ladder!r}: whole numbers, none below 0.")
        if not ladder or list(ladder) != sorted(set(ladder)) or ladder[0] < 2:
            raise InputError(f"ladder is {tuple(ladder)}, but must be rising ratios above 1, such as (4, 8, 16, 32).")
        self.slots, self.recent, self.window, self.ladder = slots, recent, window, tuple(ladder)
        self._recent: deque[Entry] = deque()
        self._n_recent = 0
        self._pinned: list[Entry] = []
        self._n_pinned = 0
        self._levels: list[deque[Entry]] = [deque() for _ in ladder]
        self._sizes = [0] * len(self.ladder)

    @property
    def n_slots(self) -> int:
        """Slots that all segments take together."""
        return self._n_pinned + sum(self._sizes)

    @property
    def n_recent_tokens(self) -> int:
        """Tokens of the newest segments, which stay as they are."""
        return self._n_recent

    def copy(self) -> SessionPlan:
        """Return a plan that goes on by itself."""
        other = SessionPlan(self.slots, self.ladder, self.window, self.recent)
        other._recent, other._n_recent = self._recent.copy(), self._n_recent
        other._pinned, other._n_pinned = self._pinned.copy(), self._n_pinned
        other._levels, other._sizes = [level.copy() for level in self._levels], self._sizes.copy()
        return other

    def append(self, entry: Entry) -> None:
        """Add the newest segment and move older ones as far as needed.

        Args:
            entry: The segment.

        Raises:
            ContextOverflowError: If pinned segments take more slots than there are; the plan cannot be used any more.
        """
        self._recent.append(entry)
        self._n_recent += entry.length
        while self._recent and self._n_recent - self._recent[0].length >= self.recent:
            oldest = self._recent.popleft()
            self._n_recent -= oldest.length
            self._compress(oldest)

    def ratios(self) -> dict[Hashable, int]:
        """Return the ratio of every segment that takes slots, by its name, in any order."""
        entries: Iterator[tuple[Entry, int]] = ((entry, self.ladder[0]) for entry in self._pinned)
        found = {entry.name: ratio for entry, ratio in entries}
        for level, ratio in zip(self._levels, self.ladder, strict=True):
            found.update((entry.name, ratio) for entry in level)
        return found

    def recent_names(self) -> list[Hashable]:
        """Return the names of the newest segments, which stay tokens, oldest first."""
        return [entry.name for entry in self._recent]

    def slots_at(self, entry: Entry, level: int) -> int:
        """Return the slots that a segment takes at a place of the ladder."""
        return slots_of(entry.length, self.ladder[level], self.window) + entry.extra

    def _compress(self, entry: Entry) -> None:
        size = self.slots_at(entry, 0)
        if entry.pinned:
            self._pinned.append(entry)
            self._n_pinned += size
        else:
            self._levels[0].append(entry)
            self._sizes[0] += size
        budget = self.slots - self._n_pinned
        if budget < 0:
            raise ContextOverflowError(
                f"pinned turns take {self._n_pinned} slots, but the session has {self.slots}: unpin some, or make the "
                "session with more slots."
            )
        while sum(self._sizes) > budget:
            self._move(next(n for n, size in enumerate(self._sizes) if size * len(self.ladder) > budget))

    def _move(self, level: int) -> None:
        entry = self._levels[level].popleft()
        self._sizes[level] -= self.slots_at(entry, level)
        if level + 1 < len(self.ladder):
            self._levels[level + 1].append(entry)
            self._sizes[level + 1] += self.slots_at(entry, level + 1)


def plan_session(
    lengths: Sequence[int],
    pins: Iterable[int],
    slots: int,
    ladder: Sequence[int],
    window: int,
    *,
    recent: int = 0,
) -> list[int]:
    """Return the ratio of every segment of a session.

    Args:
        lengths: Tokens of each segment, oldest first.
        pins: Places of those that stay at the lowest ratio.
        slots: Slots that all may take together.
        ladder: Ratios, the lowest first.
        window: Raw tokens that are condensed in one step.
        recent: Tokens that stay as they are.

    Returns:
        Ratios; `ARCHIVED` for a segment that takes no slots, `RECENT` for one that stays tokens.

    Raises:
        InputError: If an argument is out of range.
        ContextOverflowError: If pinned segments take more slots than there are.

    Example:
        >>> plan_session([10, 10, 10, 10], pins=[0], slots=12, ladder=(2, 4), window=16)
        [2, 0, 4, 4]
    """
    plan, pinned = SessionPlan(slots, ladder, window, recent), frozenset(pins)
    for place, length in enumerate(lengths):
        plan.append(Entry(place, length, place in pinned))
    found = plan.ratios() | dict.fromkeys(plan.recent_names(), RECENT)
    return [found.get(place, ARCHIVED) for place in range(len(lengths))]
