"""Make pages about places that do not exist, for tasks of our own making.

Is        seeded draws: places, pages of a few sentences about them, questions that a sentence answers.
Flow      places.yaml, training.profiles -> [places] -> rag_own, rerank, long_own, chat_own.
Change    how long a page is, which facts can be asked for.
Not here  the wordings -> training/country_fields.yaml; the tasks -> their own files.
Holds     equal generators make equal pages; a fact that is asked for stands in one line, and nowhere else.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.shipped import shipped
from ultragist_rag.training.country_fields import FIELDS, SECTIONS, Field
from ultragist_rag.training.profiles import invented_facts, invented_name, question

__all__ = [
    "SHORTEST_VALUE",
    "Fact",
    "Page",
    "Place",
    "askable",
    "draw_place",
    "draw_places",
    "page",
    "pool",
    "shrink",
]

SHORTEST_VALUE = 3
"""Characters of a value that is asked for, at least: shorter ones stand in many words."""


class Fact(NamedTuple):
    """One sentence about a place.

    Attributes:
        text: The sentence.
        field: What it tells.
        value: What it says of that, as it stands in the sentence.
    """

    text: str
    field: Field
    value: str

    def question(self, name: str, rng: random.Random, *, new: bool = False) -> str:
        """Ask for it, in a wording that the bundled model was trained on or in a new one."""
        return question(self.field, name, rng, heldout=new)


class Place(NamedTuple):
    """A place that does not exist.

    Attributes:
        name: Its name.
        seed: Of what there is to say of it.
    """

    name: str
    seed: int

    @property
    def sections(self) -> Mapping[str, tuple[Fact, ...]]:
        """All that can be said of it, by section."""
        return {section: self.section(section) for section in SECTIONS}

    @property
    def lines(self) -> list[Fact]:
        """All that can be said of it."""
        return [line for lines in self.sections.values() for line in lines]

    def section(self, section: str) -> tuple[Fact, ...]:
        """Return what can be said of it in one section: the same each time."""
        rng = random.Random(f"{self.seed}/{section}")
        fields = [field for field in FIELDS if field.section == section]
        facts = invented_facts(_values(section), rng)
        return tuple(self._fact(field, facts[field.key], rng) for field in fields if field.key in facts)

    def _fact(self, field: Field, value: str, rng: random.Random) -> Fact:
        return Fact(rng.choice(field.statements).replace("{c}", self.name).replace("{v}", value), field, value)


@dataclass(frozen=True, slots=True)
class Page:
    """A document: a header, and lines of one sentence each.

    Attributes:
        name: The place that it is about.
        header: What stands above the lines.
        lines: The sentences.
    """

    name: str
    header: str
    lines: tuple[Fact, ...]

    @property
    def text(self) -> str:
        """The document as it is read."""
        return f"{self.header}\n\n" + "\n".join(line.text for line in self.lines)


@lru_cache(maxsize=1)
def pool() -> dict[str, list[str]]:
    """Return what values of each field look like, by its key."""
    by_label: dict[str, list[str]] = shipped("places.yaml")
    return {field.key: by_label[field.label] for field in FIELDS}


@lru_cache(maxsize=len(SECTIONS))
def _values(section: str) -> dict[str, list[str]]:
    """What values of the fields of a section look like; none for the other fields."""
    return {field.key: pool()[field.key] if field.section == section else [] for field in FIELDS}


def draw_place(rng: random.Random, others: Collection[str] = ()) -> Place:
    """Draw a place with facts in all fields but a few.

    Args:
        rng: The generator.
        others: Names that must not be part of its name, nor it of them.

    Returns:
        The place.
    """
    while True:
        name = invented_name(rng)
        if not any(name in other or other in name for other in others):
            return Place(name, rng.getrandbits(48))


def draw_places(rng: random.Random, count: int) -> list[Place]:
    """Draw places of which no name is part of another.

    Args:
        rng: The generator.
        count: How many.

    Returns:
        The places.
    """
    places: list[Place] = []
    for _ in range(count):
        places.append(draw_place(rng, [place.name for place in places]))
    return places


def page(place: Place, section: str, rng: random.Random, lines: tuple[int, int]) -> Page:
    """Draw a page about one section of a place.

    Args:
        place: The place.
        section: The section.
        rng: The generator.
        lines: How many lines at least and at most, if there are as many.

    Returns:
        The page, its lines in the order of a profile.
    """
    found = place.section(section)
    kept = sorted(rng.sample(range(len(found)), min(len(found), rng.randint(*lines))))
    return Page(place.name, f"{place.name} - {section}", tuple(found[index] for index in kept))


def askable(lines: Iterable[Fact], texts: Sequence[str]) -> list[Fact]:
    """Choose lines whose value can be asked for.

    Args:
        lines: Facts of a page or of several.
        texts: All documents that will be shown.

    Returns:
        Those whose value has three characters or more and stands once in all documents taken together.
    """
    everything = "\n".join(texts).lower()
    return [one for one in lines if len(one.value) >= SHORTEST_VALUE and everything.count(one.value.lower()) == 1]


def shrink(pages: Sequence[Page], kept: Fact, room: Room, least: int = 1, label: str = "") -> list[Page]:
    """Leave out lines, then pages, until what is left fits.

    Args:
        pages: The pages.
        kept: A line that stays, and with it its page.
        room: What it must fit into.
        least: Pages that stay at least, of one line each.
        label: What will stand in front of each page, such as its number.

    Returns:
        The pages; more than fit, if not even `least` pages of one line do.
    """
    left = list(pages)
    while not room.fits(*(label + one.text for one in left)):
        sizes = [len(one.lines) - 1 for one in left]
        longest = sizes.index(max(sizes))
        if sizes[longest]:
            droppable = [index for index, line in enumerate(left[longest].lines) if line is not kept]
            lines = left[longest].lines
            left[longest] = replace(left[longest], lines=lines[: droppable[-1]] + lines[droppable[-1] + 1 :])
        elif len(left) > least:
            left.remove([one for one in left if kept not in one.lines][-1])
        else:
            break
    return left
