"""Questions about countries that training never saw, each with the chunk that answers it and three others.

Is        case building with a seeded generator: one distractor of the same country, two of other held-out countries.
Flow      chunking, training.profiles -> [heldout] -> answering.
Change    where cases come from, how distractors are drawn.
Holds     the gold chunk holds the answer; equal seeds give equal cases.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultragist_rag.chunking import split_document
from ultragist_rag.errors import InputError
from ultragist_rag.training.profiles import held_out
from ultragist_rag.training.samples import read_records

_MAX_CHARS = 1000
_OTHERS = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One question with its answers and its documents, shuffled.

    Attributes:
        question: The question.
        answers: Right answers.
        documents: What the model may read.
        heldout: Whether training never saw the wording.
        gold: Place of the document that the answer is from.
    """

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]
    heldout: bool
    gold: int


def corpus_cases(corpus: Path, questions: Path, seed: int = 0) -> list[Case]:
    """Cases of the example corpus.

    Args:
        corpus: Folder of Markdown profiles.
        questions: JSON lines with question, answer, title, section, heldout.
        seed: Of distractors and order.

    Raises:
        InputError: If a file is missing, or a question has no chunk that answers it.
    """
    if not corpus.is_dir() or not questions.is_file():
        raise InputError(f"{corpus} or {questions} is missing. `python examples/make_corpus.py` writes both.")
    chunks: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.md")):
        for chunk in split_document(path.read_text(encoding="utf-8"), max_chars=_MAX_CHARS):
            chunks.setdefault(chunk.title, []).append(chunk.text)
    rng = random.Random(seed)
    cases = []
    for line in questions.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        header = f"{entry['title']} - {entry['section']}"
        case = _case(entry["question"], (entry["answer"],), entry["title"], header, chunks, rng, entry["heldout"])
        if case is None:
            raise InputError(f"no chunk answers {entry['question']!r}. Write the corpus anew.")
        cases.append(case)
    return cases


def factbook_cases(data: Path, seed: int = 0) -> list[Case]:
    """Cases of the factbook's own sections and template questions for the held-out countries.

    Args:
        data: Folder with train/factbook.jsonl.xz and qa_train/factbook_template_qa.jsonl.xz.
        seed: Of distractors and order.

    Raises:
        TrainingError: If a file is missing.
    """
    titles = held_out([record["title"] for record in read_records(data / "train" / "factbook.jsonl.xz")])
    records = [
        r
        for r in read_records(data / "qa_train" / "factbook_template_qa.jsonl.xz")
        if r["title"] in titles and "/" not in r["title"]
    ]
    chunks: dict[str, list[str]] = {}
    for record in records:
        body = record["context"].split("\n\n", 1)[1]
        text = f"# {record['title']}\n## {record['section']}\n{body}"
        chunks.setdefault(record["title"], []).extend(c.text for c in split_document(text, max_chars=_MAX_CHARS))
    rng = random.Random(seed)
    cases = []
    for record in records:
        header = f"{record['title']} - {record['section']}"
        for qa in record["qas"]:
            case = _case(qa["question"], tuple(qa["answers"]), record["title"], header, chunks, rng, False)
            if case is not None:
                cases.append(case)
    return cases


def _case(  # noqa: PLR0913 - one row of a table
    question: str,
    answers: tuple[str, ...],
    title: str,
    header: str,
    chunks: Mapping[str, Sequence[str]],
    rng: random.Random,
    heldout: bool,
) -> Case | None:
    """Build a case; None if line breaks of the chunks cut the answer apart."""
    gold = next((c for c in chunks[title] if c.startswith(header) and any(a in c for a in answers)), None)
    if gold is None:
        return None
    same = [chunk for chunk in chunks[title] if chunk != gold]
    others = [
        chunk for name in rng.sample(sorted(set(chunks) - {title}), _OTHERS) for chunk in rng.sample(chunks[name], 1)
    ]
    documents = [gold, *rng.sample(same, min(1, len(same))), *others]
    rng.shuffle(documents)
    return Case(question, answers, tuple(documents), heldout, documents.index(gold))
