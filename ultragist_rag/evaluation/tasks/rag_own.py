"""Questions about places that do not exist, each with the page that answers it and three others.

Is        a seeded generator of samples: one distractor of the same place, two of others, at times of the same section.
Flow      places -> [rag_own] -> rag.
Change    how many samples there are, where distractors come from, how long pages are.
Holds     the answer stands once in the gold document, and in no other; equal seeds give equal samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.places import Fact, Page, askable, draw_places, page, shrink
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["NEW", "TRAINED", "invented_samples"]

TRAINED, NEW = "trained wording", "new wording"
"""Conditions: the question is worded as those that the bundled model was trained on, or in a way kept for measuring."""

_COUNT, _LINES, _NEW_SHARE = 240, (4, 8), 1 / 3
_ALIKE = 0.3
"""Share of samples in which another place's page is of the section that the answer is in."""


def invented_samples(source: Source) -> Iterator[Sample]:
    """Draw the samples of `rag/invented`.

    Args:
        source: Its seed and its room count.

    Yields:
        The samples; a third of the questions has a wording that the bundled model was not trained on.
    """
    room = Room(source)
    for index in range(_COUNT):
        name = f"invented-{index:03d}"
        rng = random.Random(f"{source.seed}/{name}")
        pages, asked = _draw(rng)
        shown = shrink(pages, asked, room)
        rng.shuffle(shown)
        new = rng.random() < _NEW_SHARE
        yield Sample(
            id=name,
            documents=tuple(one.text for one in shown),
            tail=f"\n\nQuestion: {asked.question(pages[0].name, rng, new=new)}\nAnswer:",
            answers=(asked.value,),
            gold=tuple(place for place, one in enumerate(shown) if asked in one.lines),
            group=NEW if new else TRAINED,
        )


def _draw(rng: random.Random) -> tuple[list[Page], Fact]:
    """Pages, the one that answers first, and the line that does."""
    while True:
        here, there, elsewhere = draw_places(rng, 3)
        section, second, third, fourth = rng.sample(SECTIONS, 4)
        third = section if rng.random() < _ALIKE else third
        chosen = [(here, section), (here, second), (there, third), (elsewhere, fourth)]
        pages = [page(place, about, rng, _LINES) for place, about in chosen]
        lines = askable(pages[0].lines, [one.text for one in pages])
        if lines:
            return pages, rng.choice(lines)
