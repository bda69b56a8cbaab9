"""Perplexity: the probability of the text that follows a context.

Is        a text of our own and WikiText-2, cut into contexts and what follows them in two ways.
Flow      places, metrics -> [perplexity] -> tasks.
Paper     arXiv 2412.17483, table 8: language modelling, by segments and by a sliding window.
Change    how long contexts and targets are, what our own text says.
Not here  perplexity by position in a segment -> failures.
Holds     a context and its target stand in the text as they are, one behind the other; cuts lie in front of blanks;
          segments follow each other without a gap, and so do the targets of a window that slides.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.metrics import spread
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.places import Page, draw_place, page
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["TASKS"]

_MOST = 256
"""Samples of a text at most, at even distances: a sliding window would have thousands."""

_SHORTEST_STEP, _STEPS_PER_WINDOW = 16, 8
_N_OWN, _LINES, _DISTANCE = 16, (5, 8), 2
_WORD = re.compile(r"\s*\S+|\s+\Z")

Pieces = Iterator[tuple[str, str]]
"""Contexts with what follows them."""


class _Cuts:
    """A text that can be cut in front of blanks.

    Args:
        text: The text.
        count: Counts the tokens of a text.
    """

    def __init__(self, text: str, count: Callable[[str], int]) -> None:
        """Count the tokens of each word once."""
        self._text = text
        words = _WORD.findall(text)
        sizes = {word: count(word) for word in dict.fromkeys(words)}
        self._places = list(accumulate((len(word) for word in words), initial=0))
        self._tokens = list(accumulate((sizes[word] for word in words), initial=0))
        self.n_tokens = self._tokens[-1]

    def at(self, n_tokens: int) -> int:
        """The place of the last cut that has no more tokens in front of it."""
        return self._places[bisect_right(self._tokens, n_tokens) - 1]

    def pieces(self, spans: Sequence[tuple[int, int, int]]) -> Pieces:
        """Cut out contexts and targets by their first tokens and the end; empty ones are left out."""
        for start, middle, end in spans:
            first, second, third = self.at(start), self.at(middle), self.at(end)
            if first < second < third:
                yield self._text[first:second], self._text[second:third]


def _segments(source: Source, text: str) -> Pieces:
    """Cut a text into segments of half a room and a window: the window is predicted from the rest."""
    cuts = _Cuts(text, source.count)
    context, target = _context(source), min(source.window, _context(source))
    starts = range(0, cuts.n_tokens - context - target + 1, context + target)
    spans = [(start, start + context, start + context + target) for start in starts]
    return cuts.pieces(spread(spans, _MOST))


def _sliding(source: Source, text: str) -> Pieces:
    """Predict short steps, each from the half room in front of it."""
    cuts = _Cuts(text, source.count)
    context, step = _context(source), max(_SHORTEST_STEP, source.window // _STEPS_PER_WINDOW)
    starts = range(0, cuts.n_tokens - context - step + 1, step)
    spans = [(start, start + context, start + context + step) for start in starts]
    return cuts.pieces(spread(spans, _MOST))


def _context(source: Source) -> int:
    return max(1, source.room // 2)


def _loader(
    text_of: Callable[[Source], str], cut: Callable[[Source, str], Pieces]
) -> Callable[[Source], Iterator[Sample]]:
    """Make a loader of a text and a way to cut it."""

    def load(source: Source) -> Iterator[Sample]:
        n_samples = 0
        for number, (context, target) in enumerate(cut(source, text_of(source))):
            yield Sample(id=f"{number:05d}", documents=(context,), tail="", choices=(target,))
            n_samples += 1
        if not n_samples:
            raise MissingDataError(
                f"{source.task} is left out: its text is too short for contexts of {_context(source)} tokens. "
                "Give a longer text, or a smaller --context."
            )

    return load


def _own(source: Source) -> str:
    """Write about places that do not exist, and of each place once more, in other words, two pages later.

    What is said again can be foreseen by whoever remembers the context.
    """
    rng = random.Random(f"{source.seed}/perplexity/own")
    wanted = _N_OWN * (_context(source) + source.window)
    parts: list[str] = []
    waiting: list[Page] = []
    while wanted > 0:
        waiting.append(page(draw_place(rng), rng.choice(SECTIONS), rng, _LINES))
        new = [waiting[-1].text]
        if len(waiting) > _DISTANCE:
            new.append(_again(waiting.pop(0), rng))
        wanted -= sum(source.count(text) for text in new)
        parts += new
    return "\n\n".join(parts) + "\n"


def _again(told: Page, rng: random.Random) -> str:
    """The facts of a page in another order and in other words."""
    lines = []
    for fact in rng.sample(told.lines, len(told.lines)):
        statements = [one.replace("{c}", told.name).replace("{v}", fact.value) for one in fact.field.statements]
        lines.append(rng.choice([one for one in statements if one != fact.text] or statements))
    return f"{told.header}\n\n" + "\n".join(lines)


def _file(source: Source) -> str:
    return "\n".join(source.lines())


def _score(_sample: Sample, _prediction: str) -> Scores:
    return {}


_WIKITEXT = {
    "test": ("wikitext2_valid.txt", "wiki.valid.tokens", "valid.txt", "wiki.test.tokens", "test.txt"),
}


def _task(name: str, text_of: Callable[[Source], str], cut: Callable[[Source, str], Pieces]) -> Task:
    of_file = text_of is _file
    return Task(
        name=f"perplexity/{name}",
        load=_loader(text_of, cut),
        score=_score,
        metric="ppl",
        kind="perplexity",
        n_new=0,
        separator="",
        files=_WIKITEXT if of_file else {},
        source="WikiText-2, Merity et al. 2016; CC BY-SA 3.0" if of_file else "",
    )


TASKS: tuple[Task, ...] = (
    _task("own_segments", _own, _segments),
    _task("own_sliding", _own, _sliding),
    _task("wikitext2", _file, _segments),
    _task("wikitext2_sliding", _file, _sliding),
)
