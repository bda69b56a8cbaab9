"""Read passages with questions that people asked, out of several published sets.

Is        one reader for each layout; each gives passages with short answers that stand in them.
Flow      jsonl files -> [passages] -> samples.
Change    add a set: one function and its entry in `READERS`.
Holds     an answer stands, letter by letter, in its passage; a passage has at most `LONGEST` characters.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

LONGEST = 1000
_LONGEST_ANSWER = 160
_SENTENCES = (2, 6)


class Passage(NamedTuple):
    """A text and the questions it answers."""

    text: str
    pairs: tuple[tuple[str, str], ...]


def _kept(text: str, pairs: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> Iterator[Passage]:
    held = tuple((q.strip(), a.strip()) for q, a in pairs if q.strip() and 0 < len(a.strip()) <= _LONGEST_ANSWER)
    held = tuple((question, answer) for question, answer in held if answer in text)
    if held and len(text) <= LONGEST:
        yield Passage(text, held)


def _qas(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(qa["question"], qa["answers"][0]) for qa in record["qas"] if qa["answers"]]


def _sentences(records: list[dict[str, Any]]) -> Iterator[Passage]:
    """Several sentences make a passage: those of one set follow each other."""
    rng = random.Random(0)
    at = 0
    while at < len(records):
        group = records[at : at + rng.randint(*_SENTENCES)]
        at += len(group)
        text = " ".join(record["context"] for record in group)
        yield from _kept(text, [pair for record in group for pair in _qas(record)])


def _single(records: list[dict[str, Any]]) -> Iterator[Passage]:
    for record in records:
        yield from _kept(record["context"], [(record["question"], answer) for answer in record["answers"][:1]])


def _sentence_answers(records: list[dict[str, Any]]) -> Iterator[Passage]:
    for record in records:
        yield from _kept(record["context"], [(record["question"], answer) for answer in record["answer_sentences"][:1]])


def _around(records: list[dict[str, Any]]) -> Iterator[Passage]:
    """Paragraphs of long documents around their answers."""
    for record in records:
        text = record["context"]
        paragraphs: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for question, answer in _qas(record):
            at = text.find(answer)
            if at >= 0:
                start = max(text.rfind("\n", 0, at), text.rfind(". ", 0, max(0, at - LONGEST // 2)), at - LONGEST // 2)
                paragraphs.setdefault((start + 1, start + LONGEST), []).append((question, answer))
        for (start, stop), pairs in paragraphs.items():
            yield from _kept(text[start:stop].strip(), pairs)


def _tables(records: list[dict[str, Any]]) -> Iterator[Passage]:
    """Tables as lines of `column: value`, cut to the room."""
    for record in records:
        table = list(csv.reader(io.StringIO(record["csv"])))
        if len(table) < 2:
            continue
        lines = [record["title"]]
        for row in table[1:]:
            line = "; ".join(f"{name}: {value}" for name, value in zip(table[0], row, strict=False) if value)
            if sum(map(len, lines)) + len(lines) + len(line) > LONGEST:
                break
            lines.append(line)
        yield from _kept("\n".join(lines), _qas(record))


READERS: dict[str, Callable[[list[dict[str, Any]]], Iterator[Passage]]] = {
    "qamr_wiki": _sentences,
    "policyqa_dev": _single,
    "selqa_dev": _sentence_answers,
    "covidqa_200423": _around,
    "wikitablequestions_train": _tables,
}
"""Files of `qa_train/` that become passages."""


def meeting_texts(records: list[dict[str, Any]]) -> list[str]:
    """Transcripts of `qmsum_train`, a line for each turn, and behind them what was asked of them."""
    texts = []
    for record in records:
        lines = [f"{turn['speaker']}: {turn['content']}" for turn in record["meeting_transcripts"]]
        queries = (*record["general_query_list"], *record["specific_query_list"])
        lines += [f"Question: {query['query']}\nAnswer: {query['answer']}" for query in queries]
        texts.append("\n".join(lines))
    return texts
