"""Ranking documents by relevance: the model writes their numbers, the most relevant first.

Is        the tasks of the suite `rerank`, the reader of a ranking, and pages of three grades of our own making.
Flow      places, rows, fitting -> [rerank] -> tasks.
Paper     arXiv 2412.17483, table 8: NDCG@10 on MS MARCO passages, arXiv 1611.09268.
Change    how the ranking is asked for and read, how many documents there are.
Holds     each document carries its number, so that it is known by it wherever it stands.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.scores import ndcg
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.places import Fact, Page, askable, draw_places, page, shrink
from ultragist_rag.evaluation.tasks.rows import Row, rows
from ultragist_rag.training.country_fields import SECTIONS

__all__ = ["TASKS", "read_ranking"]

_COUNT, _LINES, _N_OTHERS, _LEAST = 200, (2, 5), 5, 3
_MOST_DOCUMENTS = 50
_LABEL = "[{}] "
_WIDEST = _LABEL.format(99)
_ASK = "Write the numbers of the documents, the most relevant to the question first, as in [2] > [3] > [1]."


def read_ranking(text: str, count: int) -> list[int]:
    """Read a ranking.

    Args:
        text: What was said: numbers in brackets, or other ones between marks of order, as in `3 > 1`.
        count: How many documents there are.

    Returns:
        Places of documents, from 0, best first, each once; numbers that no document has are left out.

    Example:
        >>> read_ranking("[3] > [1] > [3] > [9]", 3)
        [2, 0]
    """
    numbers = re.findall(r"\[(\d+)\]", text) or (re.findall(r"\d+", text) if ">" in text else [])
    places = (int(number) - 1 for number in numbers)
    return list(dict.fromkeys(place for place in places if 0 <= place < count))


def _score(sample: Sample, prediction: str) -> Scores:
    grades: Sequence[float] = sample.notes["grades"]
    return ndcg(read_ranking(prediction, len(grades)), grades)


def _sample(name: str, query: str, graded: Sequence[tuple[str, float]], rng: random.Random) -> Sample:
    """Documents in an order of chance, numbered from 1; `answers` is a perfect ranking."""
    shown = list(graded)
    rng.shuffle(shown)
    grades = [grade for _text, grade in shown]
    best = sorted(range(len(shown)), key=lambda place: -grades[place])
    return Sample(
        id=name,
        documents=tuple(_LABEL.format(place + 1) + text for place, (text, _grade) in enumerate(shown)),
        tail=f"\n\nQuestion: {query}\n{_ASK}\nRanking:",
        answers=(" > ".join(f"[{place + 1}]" for place in best),),
        gold=tuple(place for place, grade in enumerate(grades) if grade == max(grades)),
        notes={"grades": grades},
    )


def _own(source: Source) -> Iterator[Sample]:
    """A question about a place that does not exist: the page that answers, two of the same place, five of others."""
    room = Room(source)
    for index in range(_COUNT):
        name = f"own-{index:03d}"
        rng = random.Random(f"{source.seed}/{name}")
        pages, asked = _draw(rng)
        here = pages[0].name
        kept = shrink(pages, asked, room, _LEAST, _WIDEST)
        graded = [(one.text, 2.0 if asked in one.lines else float(one.name == here)) for one in kept]
        yield _sample(name, asked.question(here, rng), graded, rng)


def _draw(rng: random.Random) -> tuple[list[Page], Fact]:
    """Pages, the most relevant first, and the line that answers."""
    while True:
        here, *others = draw_places(rng, 1 + _N_OTHERS)
        chosen = [(here, section) for section in rng.sample(SECTIONS, 3)]
        chosen += [(other, rng.choice(SECTIONS)) for other in others]
        pages = [page(place, section, rng, _LINES) for place, section in chosen]
        lines = askable(pages[0].lines, [one.text for one in pages])
        if lines:
            return pages, rng.choice(lines)


def _msmarco(source: Source) -> Iterator[Sample]:
    """Queries with graded passages: all that are relevant, then others in their order, as many as fit, fifty at most.

    A query that comes again, or has no relevant passage or nothing else, is left out.
    """
    room = Room(source)
    seen: set[str] = set()
    for row in rows(source):
        query = row.text("query", "question")
        if query in seen:
            continue
        seen.add(query)
        graded = {_text(one): _grade(one) for one in row.parts("ctxs")}
        relevant = [text for text, grade in graded.items() if grade > 0]
        others = [text for text, grade in graded.items() if grade <= 0]
        kept = room.fill([], [_WIDEST + text for text in (*relevant[:1], *others[:1])], 2)
        if kept is None or len(kept) < 2:
            continue
        wanted = [_WIDEST + text for text in (*relevant[1:], *others[1:])]
        kept = room.fill(kept, wanted, _MOST_DOCUMENTS) or kept
        shown = [text.removeprefix(_WIDEST) for text in kept]
        name = f"msmarco-{row.number - 1:05d}"
        rng = random.Random(f"{source.seed}/{name}")
        yield _sample(name, query, [(text, graded[text]) for text in shown], rng)


def _text(part: Row) -> str:
    title = part.values.get("title")
    return f"{title}\n\n{part.text('text')}" if title else part.text("text")


def _grade(part: Row) -> float:
    try:
        return float(part.first(["label"]))
    except (TypeError, ValueError) as error:
        raise part.wrong("label", "a number") from error


TASKS: tuple[Task, ...] = (
    Task(name="rerank/own", load=_own, score=_score, metric="ndcg", n_new=64, lm_needed=True),
    Task(
        name="rerank/msmarco",
        load=_msmarco,
        score=_score,
        metric="ndcg",
        n_new=256,
        files={"test": ("msmarco.jsonl", "test_reranking_data_k50_dep3.jsonl")},
        source="MS MARCO with TREC DL grades, for research only",
        lm_needed=True,
    ),
)
