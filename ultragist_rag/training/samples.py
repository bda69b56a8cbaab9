"""Draw training samples for the bundled model: documents, and questions that they answer.

Is        a seeded source of `Sample`s: invented and real country profiles, factbook chunks, plain text.
Flow      profiles, chunking -> [samples] -> batches.
Change    which kinds there are and how a kind is drawn (one method each).
Not here  token ids and loss masks -> batches.py.
Holds     no text, figure or question of a held-out country is ever drawn.
"""

from __future__ import annotations

import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ultragist_rag.chunking import Chunk, split_document
from ultragist_rag.errors import TrainingError
from ultragist_rag.training.country_fields import FIELDS, SECTIONS, TRAIN_FRAMES, Field
from ultragist_rag.training.exact_samples import needle_documents, pair_documents, quote_pairs
from ultragist_rag.training.passages import READERS, Passage, meeting_texts
from ultragist_rag.training.profiles import (
    Line,
    Pairs,
    facts_of,
    held_out,
    invented_facts,
    invented_name,
    profile_lines,
    question,
    read_figures,
    reordered,
    scramble,
)
from ultragist_rag.training.words import Words

MEETINGS = "qmsum_train"
"""Name of the meetings, whose transcripts count among the texts."""

KINDS = ("labels", "profile", "factbook", "needles", "codes", "keys", "key-codes", "quotes", "questions", "text")
"""What can be drawn."""

EXACT = frozenset({"codes", "key-codes"})
"""Kinds whose answers are exact values."""

_VALUES = {
    "needles": {"word": 0.5, "number": 0.5},
    "keys": {"word": 0.5, "number": 0.5},
    "codes": {"uuid": 0.75, "long": 0.25},
    "key-codes": {"uuid": 1.0},
}
_SCRAMBLED = 0.85  # share of factbook chunks whose figures and names are replaced, so that they can only be read
_WORDS = (0.1, 0.3, 0.3, 0.7)  # shares of their capitalised words that are
_MORE_WORDS = (0.3, 0.6, 0.9)  # the same of factbook chunks with real words
_NAMES = 0.4  # share of the names of places that are real words, where these are drawn
_FREE = 0.35  # share of questions in a frame that fits every field
_LABEL = re.compile(r"^[^:\n]{2,60}(?=:|$)", re.MULTILINE)  # of a value, or of a group of them
_VALUE = re.compile(r"^([A-Z][^:]{2,60}): ([^;(\[\n]{1,120})(?=[;(\[\n]|$)")


@dataclass(frozen=True, slots=True)
class Sample:
    """Documents in the order they are shown, and (question, answer) pairs about them; a plain text has no pairs.

    `exact` says that answers are exact values, which may be kept verbatim beside gists.
    """

    documents: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to draw: shares of the kinds, documents per sample, lines per document, questions per sample.

    With `real_words`, words and values of invented and scrambled documents come from the texts, too.
    """

    kinds: Mapping[str, float]
    documents: tuple[int, int] = (1, 1)
    lines: tuple[int, int] = (4, 8)
    questions: int = 4
    max_chars: int = 1000
    real_words: bool = False


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a `.jsonl.xz` file.

    Raises:
        TrainingError: If the file is missing.
    """
    if not path.is_file():
        raise TrainingError(f"{path} does not exist. Point `data` at the folder that holds train/ and qa_train/.")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class SampleSource:
    """Draws samples from the data folder; equal generators draw equal samples.

    Args:
        data: Folder with `train/*.jsonl.xz` and `qa_train/*.jsonl.xz`.
        texts: Names of training files used for plain text.
        questions: Names of files of people's questions, see `passages.READERS`.

    Raises:
        TrainingError: If a file is missing, or a set of questions is unknown.
    """

    def __init__(self, data: Path, texts: Sequence[str] = ("wikipedia-00",), questions: Sequence[str] = ()) -> None:
        profiles = read_records(data / "train" / "factbook.jsonl.xz")
        self.held_out = held_out([record["title"] for record in profiles])
        kept = [record for record in profiles if record["title"] not in self.held_out]
        self.facts = {record["title"]: facts_of(read_figures(record["text"])) for record in kept}
        self.pool = {f.key: [facts[f.key] for facts in self.facts.values() if f.key in facts] for f in FIELDS}
        self.chunks = [
            (
                record["title"].split(" (")[0],
                [c for c in split_document(_body(record["text"]), record["title"]) if c.text],
            )
            for record in kept
        ]
        self.factbook_questions = self._factbook_questions(data)
        self.texts = list(self._read_texts(data, texts))
        self._lengths = list(accumulate(map(len, self.texts)))
        self.passages = {name: self._read_passages(data, name) for name in questions}

    def _read_texts(self, data: Path, names: Sequence[str]) -> Iterator[str]:
        for name in names:
            if name == MEETINGS:
                yield from meeting_texts(read_records(data / "qa_train" / f"{name}.jsonl.xz"))
                continue
            for record in read_records(data / "train" / f"{name}.jsonl.xz"):
                if not self._names_held_out(record.get("title", "")):
                    yield record["text"]

    def _read_passages(self, data: Path, name: str) -> list[Passage]:
        if name not in READERS:
            raise TrainingError(f"questions {name!r} are unknown: known are {', '.join(READERS)}.")
        records = read_records(data / "qa_train" / f"{name}.jsonl.xz")
        kept = READERS[name]([r for r in records if not self._names_held_out(r.get("title", ""))])
        named = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(self.held_out)))})\b")
        return [passage for passage in kept if not named.search(passage.text)]

    def draw(self, recipe: Recipe, rng: random.Random) -> Sample:
        """One sample of a kind drawn by the recipe's shares."""
        kind = rng.choices(list(recipe.kinds), weights=list(recipe.kinds.values()))[0]
        count = rng.randint(*recipe.documents)
        documents, pairs = self._drawers[kind](recipe, count, rng, kind)
        rng.shuffle(documents)
        rng.shuffle(pairs)
        return Sample(tuple(documents), tuple(pairs[: recipe.questions]), kind in EXACT)

    @property
    def _drawers(self) -> dict[str, Callable[[Recipe, int, random.Random, str], tuple[list[str], Pairs]]]:
        return {
            "labels": self._profiles,
            "profile": self._profiles,
            "factbook": self._factbook,
            "needles": self._needles,
            "codes": self._needles,
            "keys": self._keys,
            "key-codes": self._keys,
            "quotes": self._quotes,
            "questions": self._questions,
            "text": self._text,
        }

    def _needles(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        place = partial(self._place, self._real(recipe))
        return needle_documents(place, count, recipe.lines, _VALUES[kind], rng)

    def _keys(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        return pair_documents(count, recipe.lines, _VALUES[kind], rng)

    def _quotes(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        """Texts of a kind each, with other words in place of some, so that they can only be read."""
        documents: list[str] = []
        while len(documents) < count:
            drawer = rng.choice((self._text, self._factbook, self._profiles))
            (document, *_), _ = drawer(recipe, 1, rng, kind)
            documents.append(scramble(document, rng, rng.choice(_WORDS), real=self._real(recipe)))
        return documents, quote_pairs(documents, recipe.questions, rng)

    def _questions(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        del recipe, kind
        chosen = rng.choice(list(self.passages.values()))
        passages = list(dict.fromkeys(rng.choice(chosen) for _ in range(count)))
        pairs = [pair for passage in passages for pair in passage.pairs]
        asked = Counter(question for question, _ in pairs)
        unique = [(question, answer) for question, answer in pairs if asked[question] == 1]
        return list(dict.fromkeys(passage.text for passage in passages)), unique

    def _profiles(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        documents: list[str] = []
        pairs: Pairs = []
        shared = rng.choice(SECTIONS)
        while len(documents) < count:
            name, facts = self._place(self._real(recipe), rng)
            sections = profile_lines(name, facts, rng)
            same = count > 1 and len(documents) + 2 <= count and rng.random() < 0.6
            chosen = rng.sample(SECTIONS, 2) if same else [shared if rng.random() < 0.5 else rng.choice(SECTIONS)]
            for section in chosen:
                lines = [line for line in sections[section] if line.field or rng.random() < 0.2]
                keep = min(len(lines), rng.randint(*recipe.lines))
                lines = [lines[i] for i in sorted(rng.sample(range(len(lines)), keep))]
                documents.append(_document(name, section, lines, labels=kind == "labels"))
                pairs += [(_ask(line.field, name, rng), line.value) for line in lines if line.field]
        return documents, pairs

    def _place(self, real: Words | None, rng: random.Random) -> tuple[str, dict[str, str]]:
        if rng.random() < 0.2:
            name = rng.choice(list(self.facts))
            return name, self.facts[name] if rng.random() < 0.5 else invented_facts(self.pool, rng, real)
        return _name(real, rng), invented_facts(self.pool, rng, real)

    def _real(self, recipe: Recipe) -> Words | None:
        return self.words if recipe.real_words else None

    @cached_property
    def words(self) -> Words:
        """Words of the texts, without the names of held-out places."""
        return Words(self.texts, {word for name in self.held_out for word in re.findall(r"[^\W\d_]{4,}", name)})

    def _factbook(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        del kind
        real = self._real(recipe)
        documents: list[str] = []
        pairs: Pairs = []
        while len(documents) < count:
            title, chunks = rng.choice(self.chunks)
            if rng.random() < 0.65:
                chunks = [chunk for chunk in chunks if self._template_pairs(title, chunk)] or chunks
            new = _name(real, rng) if rng.random() < 0.5 else title
            several = count > len(documents) + 1 and rng.random() < 0.5
            for chunk in rng.sample(chunks, min(len(chunks), 2 if several else 1)):
                body, found = chunk.text, self._asked(title, chunk, rng)
                if rng.random() < _SCRAMBLED:
                    kept = re.findall(r"^\w+|(?<=\n)\w+", body) + re.findall(r"\w+", f"{title} {chunk.section}")
                    if real:
                        kept += re.findall(r"\w+", " ".join(_LABEL.findall(body)))
                        body, found = reordered(body, found, rng)
                    seen = {word: word for word in kept}
                    body = scramble(body, rng, rng.choice(_MORE_WORDS if real else _WORDS), seen, real)
                    found = [(q, scramble(a, rng, 0.0, seen, real)) for q, a in found]
                    found = [(q, a) for q, a in found if a in body] if real else found
                documents.append(body.replace(title, new))
                pairs += [(q.replace(title, new), a.replace(title, new)) for q, a in found]
        return documents, pairs

    def _asked(self, title: str, chunk: Chunk, rng: random.Random) -> Pairs:
        """A question for each value that a chunk tells; in other words again, its answer would stand in front of it."""
        wordings: dict[str, list[str]] = {}
        for wording, value in self._template_pairs(title, chunk):
            wordings.setdefault(value, []).append(wording)
        for line in chunk.text.splitlines():
            match = _VALUE.match(line)
            if match and "total" not in match.group(1):
                label = match.group(1)
                label = label[0].lower() + label[1:]
                wording = rng.choice(FRAMES).format(n=label, c=title)
                wordings.setdefault(match.group(2).strip().rstrip(","), []).append(wording)
        return [(rng.choice(asked), value) for value, asked in wordings.items()]

    def _template_pairs(self, title: str, chunk: Chunk) -> Pairs:
        asked = self.factbook_questions.get(title, [])
        return [(q, a) for section, q, a in asked if section == chunk.section and a in chunk.text]

    def _factbook_questions(self, data: Path) -> dict[str, list[tuple[str, str, str]]]:
        """Section, question and answer by title."""
        pairs: dict[str, list[tuple[str, str, str]]] = {}
        wordings = {w: f.train_wordings() for f in FIELDS for w in f.questions}
        for record in read_records(data / "qa_train" / "factbook_template_qa.jsonl.xz"):
            title = record["title"]
            if title in self.held_out:
                continue
            for qa in record["qas"]:
                asked = qa["question"].replace(title, "{c}")
                for wording in (asked, *wordings.get(asked, ())):
                    pairs.setdefault(title, []).append(
                        (record["section"], wording.replace("{c}", title), qa["answers"][0])
                    )
        return pairs

    def _text(self, recipe: Recipe, count: int, rng: random.Random, kind: str) -> tuple[list[str], Pairs]:
        del kind, count
        text = rng.choices(self.texts, cum_weights=self._lengths)[0]
        start = rng.randrange(max(1, len(text) - recipe.max_chars))
        start = text.find(" ", start, start + 30) + 1 or start
        return [text[start : start + recipe.max_chars]], []

    def _names_held_out(self, title: str) -> bool:
        return any(name in title for name in self.held_out)


FRAMES = (
    *TRAIN_FRAMES,
    "What is the {n} in {c}?",
    "Tell me the {n} of {c}.",
    "Name {c}'s {n}.",
    "Please state the {n} of {c}.",
    "What do the documents say about the {n} of {c}?",
    "According to the text, what is {c}'s {n}?",
    "Find the {n} for {c}.",
    "{c}: what is its {n}?",
    "In the case of {c}, which {n} is given?",
    "Do you know the {n} of {c}?",
    "I am looking for the {n} of {c}.",
    "How is the {n} of {c} described?",
)
"""Frames of questions for training; none is one of those kept for measuring."""


def _ask(field: Field, name: str, rng: random.Random) -> str:
    if rng.random() < _FREE:
        return rng.choice(FRAMES).replace("{n}", field.label).replace("{c}", name)
    return question(field, name, rng)


def _name(real: Words | None, rng: random.Random) -> str:
    return real.name(rng) if real and rng.random() < _NAMES else invented_name(rng)


def _body(text: str) -> str:
    """A factbook record without its title line's suffix."""
    return re.sub(r"^# .*\n", "", text, count=1)


def _document(name: str, section: str, lines: Sequence[Line], *, labels: bool) -> str:
    if labels:
        body = "\n".join(f"{line.field.label}: {line.value}" for line in lines if line.field)
    else:
        body = "\n".join(line.text for line in lines)
    return f"{name} - {section}\n\n{body}"
