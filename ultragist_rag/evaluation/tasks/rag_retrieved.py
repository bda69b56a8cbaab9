"""Questions with the passages that were retrieved for them, in the form that benchmarks of retrieval publish.

Is        a reader of records with `question`, `answers`, `ctxs` and, if there are any, `positive_ctxs`.
Flow      rows, fitting -> [rag_retrieved] -> rag.
Paper     the form goes back to dense passage retrieval, arXiv 2004.04906; HotpotQA's own is read as well.
Change    what counts as the passage that answers, how many passages are shown.
Holds     passages that answer come before others when there is room for some only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.metrics import normalise
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.rows import Row, rows

__all__ = ["retrieved_samples"]

_MOST_DOCUMENTS = 20
_NAMED_GOLD = ("isgold", "is_gold")


def retrieved_samples(source: Source) -> Iterator[Sample]:
    """Read questions with passages.

    Passages that answer are those of `positive_ctxs`, else those that are marked, else those that hold an answer; if
    there are none, the question stays, for retrieval may fail. A question that comes again is left out (some files
    have each several times, with the right passage at other places: here passages are shuffled). So is one whose
    passages do not fit.

    Args:
        source: Where the file is.

    Yields:
        The samples, with twenty passages at most.

    Raises:
        InputError: If a record is not as it should be.
    """
    room = Room(source)
    asked: set[str] = set()
    for row in rows(source):
        question = row.text("question")
        if question in asked:
            continue
        asked.add(question)
        answers = row.answers("answers", "answer")
        gold, others = _passages(row, answers)
        chosen = room.fill(gold[:1], [*gold[1:], *others], _MOST_DOCUMENTS)
        if not chosen:
            continue
        name = f"{source.task.partition('/')[2]}-{row.number - 1:05d}"
        random.Random(f"{source.seed}/{name}").shuffle(chosen)
        yield Sample(
            id=name,
            documents=tuple(chosen),
            tail=f"\n\nQuestion: {question}\nAnswer:",
            answers=answers,
            gold=tuple(place for place, text in enumerate(chosen) if text in gold),
        )


def _passages(row: Row, answers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Passages that answer, and the others, each once, in their order."""
    if "ctxs" not in row.values and "context" in row.values:
        return _paragraphs(row)
    parts = row.parts("ctxs")
    every = dict.fromkeys(_text(one) for one in parts)
    positive = row.parts("positive_ctxs") if row.values.get("positive_ctxs") else []
    gold = [_text(one) for one in positive] or [
        _text(one) for one in parts if any(one.values.get(mark) is True for mark in _NAMED_GOLD)
    ]
    wanted = [f" {normalise(one)} " for one in answers if normalise(one)]
    gold = gold or [text for text in every if any(one in f" {normalise(text)} " for one in wanted)]
    return list(dict.fromkeys(gold)), [text for text in every if text not in gold]


def _text(part: Row) -> str:
    title = part.values.get("title")
    return f"{title}\n\n{part.text('text')}" if title else part.text("text")


def _paragraphs(row: Row) -> tuple[list[str], list[str]]:
    """HotpotQA's own form: pairs of title and sentences, and the titles of those that answer."""
    pairs, facts = row.items("context"), row.items("supporting_facts")
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], list) for pair in pairs):
        raise row.wrong("context", "a list of pairs of title and sentences")
    if not all(isinstance(fact, list) and fact for fact in facts):
        raise row.wrong("supporting_facts", "a list of pairs of title and number")
    titles = {fact[0] for fact in facts}
    texts = [(title, f"{title}\n\n{''.join(map(str, sentences)).strip()}") for title, sentences in pairs]
    return [text for title, text in texts if title in titles], [text for title, text in texts if title not in titles]
