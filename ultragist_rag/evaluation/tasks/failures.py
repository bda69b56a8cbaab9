"""Three ways in which gists fail, as tasks: lost if surprise, lost along the way, lost by the boundary.

Is        seeded samples about invented places, and the scores that tell the conditions apart.
Flow      places, scores -> [tasks.failures] -> runner; drawn by evaluation.failures.plots.
Paper     arXiv 2412.17483: table 4 with its example in table 13, figure 5, figure 4. The texts are ours.
Change    what the needles say, at which lengths a context is cut.
Not here  perplexity by position, the reconstruction probe, plots -> evaluation/failures/.
Holds     a needle stands in one document, once; a cut context holds the sentence that answers at every length.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.scores import qa_scores
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.places import Fact, Page, draw_place, page
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["DIGITS", "GROUPS", "TASKS", "cut_lengths", "last_tokens", "pages_of_length"]

GROUPS = ("relevant word", "relevant number", "irrelevant word", "irrelevant number")
"""Conditions of `failures/surprise`: whose needle it is, and what its value is made of."""

DIGITS = (1, 2, 4, 8, 16, 32)
"""First digits of a UUID that must be right."""

_N_BASES, _N_CODES, _N_TEXTS = 50, 100, 25
_TOKENS_PER_DOCUMENT, _FEWEST, _MOST = 256, 2, 16
_N_LINES = (8, 8)
_MULTIPLES = (1, 2)
_TRIES = 100
_CODE = re.compile(r"(?<![0-9a-z])(?=[a-f]*\d)[0-9a-f]+")
_KINDS = ("silver", "copper", "glass", "blue", "salt", "amber", "painted", "carved", "paper", "green", "ivory", "linen")
_THINGS = ("shells", "beads", "stones", "bars", "leaves", "feathers", "rings", "notes", "tokens", "threads")
_WORD = ("The currency of {c} is {v}.", "What is the currency of {c}?", "currency")
_NUMBER = ("The population of {c} is {v}.", "What is the population of {c}?", "population")
_UUID = ("The aircraft prefix of {c} is {v}.", "What is the aircraft prefix of {c}?", "aircraft prefix")
_ASKED = frozenset(form[2] for form in (_WORD, _NUMBER, _UUID))


@dataclass(frozen=True, slots=True)
class _Needle:
    """Where a sentence is put: the document, the line in front of which it stands, and whom it is about."""

    place: int
    line: int
    subject: str

    def put(self, pages: Sequence[Page], sentence: str) -> tuple[str, ...]:
        """Lay the documents out, one of them with the sentence."""
        texts = [one.text for one in pages]
        lines = [line.text for line in pages[self.place].lines]
        lines.insert(self.line, sentence)
        texts[self.place] = f"{pages[self.place].header}\n\n" + "\n".join(lines)
        return tuple(texts)


def _draw_page(rng: random.Random, without: frozenset[str] = frozenset()) -> Page:
    """Draw a page about a new place, without some fields."""
    while True:
        drawn = page(draw_place(rng), rng.choice(SECTIONS), rng, _N_LINES)
        lines = tuple(line for line in drawn.lines if line.field.label not in without)
        if lines:
            return replace(drawn, lines=lines)


def _documents(source: Source, rng: random.Random) -> list[Page]:
    """Draw as many pages as there is room for, about one place each, without what is asked for."""
    n = min(max(source.room // _TOKENS_PER_DOCUMENT, _FEWEST), _MOST)
    most = source.room // n - _TOKENS_PER_DOCUMENT // 4
    pages: list[Page] = []
    while len(pages) < n:
        drawn = _draw_page(rng, _ASKED)
        while len(drawn.lines) > 1 and source.count(drawn.text) > most:
            drawn = replace(drawn, lines=drawn.lines[:-1])
        if all(drawn.name not in other.text and other.name not in drawn.text for other in pages):
            pages.append(drawn)
    return pages


def _stranger(pages: Sequence[Page], rng: random.Random) -> str:
    """Draw the name of a place that no page mentions."""
    while True:
        name = draw_place(rng).name
        if not any(name in one.text for one in pages):
            return name


def pages_of_length(rng: random.Random, n_tokens: int, count: Callable[[str], int]) -> list[Page]:
    """Draw pages about places that do not exist until they are long enough together.

    Args:
        rng: The generator.
        n_tokens: Tokens that they must have.
        count: Counts the tokens of a text.

    Returns:
        Pages, each about another place.
    """
    pages: list[Page] = []
    have = 0
    while have < n_tokens:
        drawn = _draw_page(rng)
        if any(drawn.name in other.text or other.name in drawn.text for other in pages):
            continue
        pages.append(drawn)
        have += count(drawn.text)
    return pages


def _tail(asked: str) -> str:
    return f"\n\nQuestion: {asked}\nAnswer:"


def _needle_sample(
    name: str, group: str, pages: Sequence[Page], needle: _Needle, form: Sequence[str], value: str
) -> Sample:
    statement, asked, _ = (text.replace("{c}", needle.subject).replace("{v}", value) for text in form)
    documents = needle.put(pages, statement)
    return Sample(
        id=name,
        documents=documents,
        tail=_tail(asked),
        answers=(value,),
        gold=(needle.place,),
        group=group,
        notes={"needle": statement, "subject": needle.subject},
    )


# --- lost if surprise ---------------------------------------------------------------------------------------------


def _surprise(source: Source) -> Iterator[Sample]:
    """Yield all samples of one group after the other; their documents, places and values are the same."""
    rng = random.Random(source.seed)
    bases = []
    for _ in range(_N_BASES):
        pages = _documents(source, rng)
        place = rng.randrange(len(pages))
        line = rng.randrange(len(pages[place].lines) + 1)
        word = f"{rng.choice(_KINDS)} {rng.choice(_THINGS)}"
        number = f"{rng.randrange(10**7, 10**8):,}"
        bases.append((pages, place, line, _stranger(pages, rng), {"word": word, "number": number}))
    for group in GROUPS:
        relevance, kind = group.split()
        for number_of_base, (pages, place, line, stranger, values) in enumerate(bases):
            subject = pages[place].name if relevance == "relevant" else stranger
            form = _WORD if kind == "word" else _NUMBER
            name = f"{number_of_base:03}-{relevance}-{kind}"
            yield _needle_sample(name, group, pages, _Needle(place, line, subject), form, values[kind])


# --- lost along the way -------------------------------------------------------------------------------------------


def _along_the_way(source: Source) -> Iterator[Sample]:
    rng = random.Random(source.seed)
    for number in range(_N_CODES):
        pages = _documents(source, rng)
        place = rng.randrange(len(pages))
        needle = _Needle(place, rng.randrange(len(pages[place].lines) + 1), pages[place].name)
        value = uuid.UUID(int=rng.getrandbits(128), version=4).hex
        yield _needle_sample(f"{number:03}", "", pages, needle, _UUID, value)


def _first_digits(sample: Sample, prediction: str) -> Scores:
    """Compare the first digits of the first code in the prediction."""
    found = _CODE.search(prediction.lower().replace("-", ""))
    said = found[0] if found else ""
    (right,) = sample.answers
    return {f"first_{n}": float(said[:n] == right[:n]) for n in DIGITS}


# --- lost by the boundary -----------------------------------------------------------------------------------------


def cut_lengths(window: int, room: int) -> tuple[int, ...]:
    """Lengths around the first multiples of a window, and half way to the next one.

    Args:
        window: Tokens of a window.
        room: Tokens that a context may have.

    Returns:
        Lengths in tokens, in rising order, as far as there is room.
    """
    steps = (-window // 8, 0, window // 8, window // 2)
    return tuple(window * n + step for n in _MULTIPLES for step in steps if window * n + step <= room)


def last_tokens(text: str, n_tokens: int, count: Callable[[str], int]) -> str:
    """Cut a text to its last tokens.

    Args:
        text: The text.
        n_tokens: Tokens that may be left.
        count: Counts the tokens of a text.

    Returns:
        The longest end of the text that has no more tokens, found by halving.
    """
    low, high = 0, len(text)  # a cut at `high` fits
    while low < high:
        middle = (low + high) // 2
        if count(text[middle:]) <= n_tokens:
            high = middle
        else:
            low = middle + 1
    return text[high:]


def _boundary_cut(source: Source) -> Iterator[Sample]:
    """Yield all samples of one length after the other; every text is asked the same at each."""
    lengths = cut_lengths(source.window, source.room)
    if not lengths:
        raise MissingDataError(
            f"{source.task} is left out: a context may have {source.room} tokens, less than a window of "
            f"{source.window}. Raise --context."
        )
    rng = random.Random(source.seed)
    bases = [_cut_base(source, lengths, rng) for _ in range(_N_TEXTS)]
    for length in lengths:
        for number, (ends, line, asked) in enumerate(bases):
            yield Sample(
                id=f"{number:03}-{length:05}",
                documents=(ends[length],),
                tail=_tail(asked),
                answers=(line.value,),
                gold=(0,),
                group=f"{length:05}",
                notes={"evidence": line.text},
            )


def _cut_base(source: Source, lengths: Sequence[int], rng: random.Random) -> tuple[dict[int, str], Fact, str]:
    """Write a text, cut it to all lengths, and choose a sentence that stands in the shortest end."""
    for _ in range(_TRIES):
        pages = pages_of_length(rng, max(lengths) + 1, source.count)
        end = "\n\n".join(one.text for one in pages)
        ends: dict[int, str] = {}
        for length in sorted(lengths, reverse=True):
            end = ends[length] = last_tokens(end, length, source.count)
        inside = [(one.name, line) for one in pages for line in one.lines if f"\n{line.text}" in end]
        if inside:
            name, line = rng.choice(inside)
            return ends, line, line.question(name, rng)
    raise MissingDataError(
        f"{source.task} is left out: no sentence fits into {min(lengths)} tokens. Take a model with a longer window."
    )


def _answered(sample: Sample, prediction: str) -> Scores:
    return qa_scores(prediction, sample.answers)


TASKS = (
    Task(name="failures/surprise", load=_surprise, score=_answered, metric="subem", n_new=24),
    Task(name="failures/along_the_way", load=_along_the_way, score=_first_digits, metric="first_4", n_new=48),
    Task(name="failures/boundary_cut", load=_boundary_cut, score=_answered, metric="subem"),
)
