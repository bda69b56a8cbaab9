"""Hide sentences in pages about places that do not exist, as many pages as there is room for.

Is        a seeded builder: needles in, documents out.
Flow      places, fitting -> [haystack] -> recall.
Change    how long a page is, what goes first if there is too little room.
Not here  what the needles say and what is asked -> recall.py.
Holds     a needle stands in one document, in a line of its own; what is asked for is never left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.places import Place, draw_place, page
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["Needle", "hide"]

_LINES = (5, 7)


@dataclass(frozen=True, slots=True)
class Needle:
    """A sentence to hide.

    Attributes:
        place: The place that it is about.
        section: The section of that place that its page is about.
        sentence: The sentence.
        label: What it tells, so that nothing else is said of it on the page; may be no field of a profile.
        asked: Whether the question is about it.
    """

    place: Place
    section: str
    sentence: str
    label: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class _Page:
    """A document: header, lines, and the place of the needle among the lines, if there is one."""

    header: str
    lines: tuple[str, ...]
    needle: int | None = None
    asked: bool = False

    @property
    def text(self) -> str:
        return f"{self.header}\n\n" + "\n".join(self.lines)

    @property
    def can_shrink(self) -> bool:
        return len(self.lines) > 1

    def shorter(self) -> _Page:
        """Without its last line that is no needle."""
        last = len(self.lines) - 1
        if last != self.needle:
            return replace(self, lines=self.lines[:-1])
        return replace(self, lines=(*self.lines[: last - 1], self.lines[last]), needle=last - 1)


def hide(room: Room, rng: random.Random, needles: Sequence[Needle]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Write pages around needles, and others beside them until the room is full.

    Args:
        room: What all must fit into.
        rng: The generator.
        needles: One for each page; some are asked for.

    Returns:
        The documents, mixed, and the places of those with needles that are asked for. Too little room costs first the
        other sentences, then the needles that nobody asks for.
    """
    taken = {needle.place.name for needle in needles}
    labels = {needle.label for needle in needles}
    pages = _shrunk(room, [_around(needle, labels, rng) for needle in needles])
    left = room.tokens - room.size(SEPARATOR.join(one.text for one in pages))
    for other in _others(rng, taken, labels):
        left -= room.size(other.text)
        if left < 0:
            break
        pages.append(other)
    while len(pages) > len(needles) and not _fit(room, pages):  # together they may need a few tokens more
        del pages[-1]
    rng.shuffle(pages)
    return tuple(one.text for one in pages), tuple(place for place, one in enumerate(pages) if one.asked)


def _lines(place: Place, section: str, labels: set[str], rng: random.Random) -> tuple[str, tuple[str, ...]]:
    drawn = page(place, section, rng, _LINES)
    return drawn.header, tuple(line.text for line in drawn.lines if line.field.label not in labels)


def _around(needle: Needle, labels: set[str], rng: random.Random) -> _Page:
    header, lines = _lines(needle.place, needle.section, labels, rng)
    at = rng.randint(0, len(lines))
    return _Page(header, (*lines[:at], needle.sentence, *lines[at:]), at, needle.asked)


def _others(rng: random.Random, taken: set[str], labels: set[str]) -> Iterator[_Page]:
    """Yield pages about other places without end; no name is part of another."""
    while True:
        place = draw_place(rng)
        if any(place.name in name or name in place.name for name in taken):
            continue
        taken.add(place.name)
        header, lines = _lines(place, rng.choice(SECTIONS), labels, rng)
        if lines:
            yield _Page(header, lines)


def _fit(room: Room, pages: Sequence[_Page]) -> bool:
    return room.fits(SEPARATOR.join(one.text for one in pages))


def _shrunk(room: Room, pages: list[_Page]) -> list[_Page]:
    """Take lines from the longest pages, then leave pages out, until the rest fits or is asked for."""
    kept = list(pages)
    while not _fit(room, kept):
        longest = max(range(len(kept)), key=lambda place: len(kept[place].lines))
        unasked = [place for place, one in enumerate(kept) if not one.asked]
        if kept[longest].can_shrink:
            kept[longest] = kept[longest].shorter()
        elif unasked:
            del kept[unasked[-1]]
        else:
            break
    return kept
