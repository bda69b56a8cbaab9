"""One long report of a journey through places that do not exist, and questions about one of its passages.

Is        a seeded generator: a title, a passage of a few sentences for each place, as many as fit the room.
Flow      places -> [long_own] -> long_qa.
Change    what a passage looks like, which facts are asked for, where in the report they stand.
Holds     the answer stands once in the report; a report fits its room; equal seeds give equal reports.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.places import Fact, Page, askable, draw_place, page
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["choice_samples", "long_samples"]

_COUNT, _LINES, _N_CHOICES = 120, (4, 7), 4
_THIRDS = ("beginning", "middle", "end")


class _Report(NamedTuple):
    """A report, the place and the fact of it that is asked for, all its passages, and where the fact stands."""

    text: str
    name: str
    asked: Fact
    pages: tuple[Page, ...]
    third: str


def long_samples(source: Source) -> Iterator[Sample]:
    """Draw the samples of `longqa/own`.

    Args:
        source: Its seed and its room count.

    Yields:
        The samples, about the beginning, the middle or the end of a report.
    """
    room = Room(source)
    for index in range(_COUNT):
        name = f"own-{index:03d}"
        rng = random.Random(f"{source.seed}/{name}")
        yield _sample(name, _report(room, rng), rng)


def choice_samples(source: Source) -> Iterator[Sample]:
    """Draw the samples of `longqa/choice_own`: the wrong choices are what the report says of other places, if it does.

    Args:
        source: Its seed and its room count.

    Yields:
        The samples.
    """
    room = Room(source)
    for index in range(_COUNT):
        name = f"choice-own-{index:03d}"
        rng = random.Random(f"{source.seed}/{name}")
        report = _report(room, rng)
        sample = _sample(name, report, rng)
        choices = _choices(report, rng)
        yield replace(sample, choices=tuple(f" {choice}" for choice in choices))


def _sample(name: str, report: _Report, rng: random.Random) -> Sample:
    return Sample(
        id=name,
        documents=(report.text,),
        tail=f"\n\nQuestion: {report.asked.question(report.name, rng)}\nAnswer:",
        answers=(report.asked.value,),
        gold=(0,),
        group=report.third,
    )


def _report(room: Room, rng: random.Random) -> _Report:
    """Passages, as many as fit; a fact of more than one word in a third of them is asked for."""
    part = rng.randrange(len(_THIRDS))
    while True:
        pages = _passages(room, rng)
        text = _text(pages)
        first, end = (len(pages) * bound // len(_THIRDS) for bound in (part, part + 1))
        chosen = rng.choice(pages[first : max(first + 1, end)])
        lines = [line for line in askable(chosen.lines, [text]) if " " in line.value]
        if lines:
            return _Report(text, chosen.name, rng.choice(lines), tuple(pages), _THIRDS[part])


def _passages(room: Room, rng: random.Random) -> list[Page]:
    """Passages that fit together, one at least."""
    pages: list[Page] = []
    left = room.tokens - room.size(_text([]))
    while not pages or left > 0:
        place = draw_place(rng, [other.name for other in pages])
        new = page(place, rng.choice(SECTIONS), rng, _LINES)
        new = replace(new, header=f"Day {len(pages) + 1}: {new.header}")
        left -= room.size(new.text)
        pages.append(new)
    while len(pages) > 1 and not room.fits(_text(pages)):
        pages.pop()
    return pages


def _text(pages: Sequence[Page]) -> str:
    return "\n\n".join(["Report of a journey", *(one.text for one in pages)])


def _choices(report: _Report, rng: random.Random) -> list[str]:
    """Four values of the field that is asked for, shuffled: one right, the others of the report, else of new places."""
    told = [line.value for one in report.pages for line in one.lines if line.field == report.asked.field]
    choices = [report.asked.value]
    rng.shuffle(told)
    while len(choices) < _N_CHOICES:
        new = draw_place(rng).section(report.asked.field.section)
        values = [told.pop()] if told else [line.value for line in new if line.field == report.asked.field]
        choices += [value for value in values if value.lower() not in [choice.lower() for choice in choices]]
    rng.shuffle(choices)
    return choices
