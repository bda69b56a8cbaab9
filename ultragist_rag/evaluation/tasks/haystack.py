"""Hide sentences in pages about places that do not exist, as many pages as there is room for.

Is        `Haystack`: a seeded stock of places, needles in, documents out.
Flow      places, fitting -> [haystack] -> recall.
Change    how long a page is, how many places there are, what goes first if there is too little room.
Not here  what the needles say and what is asked -> recall.py.
Holds     a needle stands in one document, in a line of its own; what is asked for is never left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.places import Fact, Place, draw_places, page
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["Haystack", "Needle"]

_LINES = (5, 7)
_FEWEST_PLACES, _TOKENS_PER_PLACE = 24, 80


class Needle(NamedTuple):
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


class _Page(NamedTuple):
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
            return self._replace(lines=self.lines[:-1])
        return self._replace(lines=(*self.lines[: last - 1], self.lines[last]), needle=last - 1)


class Haystack:
    """Pages of one task: samples share its places, in other company each time.

    Args:
        source: Its room, its seed.
    """

    def __init__(self, source: Source) -> None:
        """Draw more places than the room holds pages."""
        self._room = Room(source)
        rng = random.Random(f"{source.seed}/{source.task}/places")
        self._places = draw_places(rng, _FEWEST_PLACES + self._room.tokens // _TOKENS_PER_PLACE)
        self._drawn: dict[tuple[Place, str], tuple[str, tuple[Fact, ...]]] = {}

    def places(self, rng: random.Random, count: int) -> list[Place]:
        """Choose places, none twice."""
        return rng.sample(self._places, count)

    def hide(self, rng: random.Random, needles: Sequence[Needle]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Write pages around needles, and others beside them until the room is full.

        Args:
            rng: The generator.
            needles: One for each page; some are asked for.

        Returns:
            The documents, mixed, and the places of those with needles that are asked for. Too little room costs first
            the other sentences, then the needles that nobody asks for.
        """
        labels = {needle.label for needle in needles}
        pages = _shrunk(self._room, [self._around(needle, labels, rng) for needle in needles])
        n_needles = len(pages)
        left = self._room.tokens - self._room.size(SEPARATOR.join(one.text for one in pages))
        for other in self._others({needle.place for needle in needles}, labels, rng):
            left -= self._room.size(other.text)
            if left < 0:
                break
            pages.append(other)
        while len(pages) > n_needles and not _fit(self._room, pages):  # together they may need a few tokens more
            del pages[-1]
        rng.shuffle(pages)
        return tuple(one.text for one in pages), tuple(place for place, one in enumerate(pages) if one.asked)

    def _lines(self, place: Place, section: str, labels: set[str]) -> tuple[str, tuple[str, ...]]:
        """Header and sentences of a page that says nothing of some fields."""
        if (place, section) not in self._drawn:
            drawn = page(place, section, random.Random(f"{place.name}/{section}"), _LINES)
            self._drawn[place, section] = drawn.header, drawn.lines
        header, lines = self._drawn[place, section]
        return header, tuple(line.text for line in lines if line.field.label not in labels)

    def _around(self, needle: Needle, labels: set[str], rng: random.Random) -> _Page:
        header, lines = self._lines(needle.place, needle.section, labels)
        at = rng.randint(0, len(lines))
        return _Page(header, (*lines[:at], needle.sentence, *lines[at:]), at, needle.asked)

    def _others(self, taken: set[Place], labels: set[str], rng: random.Random) -> Iterator[_Page]:
        """Yield pages about the other places."""
        for number in rng.sample(range(len(self._places)), len(self._places)):
            header, lines = self._lines(self._places[number], SECTIONS[number % len(SECTIONS)], labels)
            if lines and self._places[number] not in taken:
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
