"""Ask for numbers and UUIDs out of compressed documents: with and without verbatim tokens, at equal slots.

Is        seeded cases, the conditions they are read under, one row for each.
Flow      training.profiles, engine, metrics -> [recall] -> cli_recall.
Change    what must be recalled, how many slots a document may take.
Not here  which tokens are kept -> memory/verbatim.py; the command -> cli_recall.py.
Holds     all conditions ask the same questions about the same documents; equal seeds give equal cases.
"""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.answering import read
from ultragist_rag.evaluation.metrics import Scores, bootstrap, difference, exact_match, mean
from ultragist_rag.evaluation.report import interval
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.spans import Offsets
from ultragist_rag.training.country_fields import FIELDS, TRAIN_FRAMES
from ultragist_rag.training.profiles import invented_name, question, scramble

__all__ = ["BUDGETS", "RecallCase", "RecallRow", "measure_recall", "read_pool", "recall_cases", "recall_table"]

BUDGETS = {"number": (20, 32, 48), "long number": (24, 48), "uuid": (48, 64)}
"""What is asked for, and the slots that each document may take."""

_N_LINES, _MIN_DIGITS, _BATCH = 7, 4, 20
_RECORD = "record number"
_RECORD_STATEMENTS = ("The record number of {c} is {v}.", "{c} has the record number {v}.")

_log = logging.getLogger(__name__)

Pool = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class RecallCase:
    """A document with one exact value, the question for it, and the value."""

    document: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class RecallRow:
    """One condition.

    Attributes:
        task: What was asked for, one of `BUDGETS`.
        read_from: `text`, `every token` (all kept verbatim, and a gist for each window), `gists`, or `gists + POLICY`.
        budget: Slots that a document may take; None for all it needs.
        slots: Slots that it took on average.
        n_verbatim: Verbatim slots among them, on average.
        exact_match: Share of right answers, with its 95 % interval.
        characters: Share of the value's characters that the answer has in this order, with its 95 % interval.
        difference: Exact match minus that of gists alone at the same budget, with its 95 % paired interval.
        questions: Questions asked.
    """

    task: str
    read_from: str
    budget: int | None
    slots: float
    n_verbatim: float
    exact_match: tuple[float, float, float]
    characters: tuple[float, float, float]
    difference: tuple[float, float, float] | None
    questions: int

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


def read_pool(path: Path) -> dict[str, list[str]]:
    """Values of each field, from a JSON file of facts by place.

    Args:
        path: As `examples/corpus_facts.json`.

    Returns:
        Values by field.

    Raises:
        InputError: If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: name a file of facts with --facts, such as examples/corpus_facts.json.")
    facts: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return {field.key: [one[field.key] for one in facts.values() if field.key in one] for field in FIELDS}


def recall_cases(task: str, pool: Pool, count: int, seed: int = 0) -> list[RecallCase]:
    """Draw documents about places that do not exist, sentence by sentence as in profiles, one with an exact value.

    Args:
        task: `number` (four digits or more), `long number` (twelve) or `uuid`.
        pool: Values of each field; the other sentences take those without digits.
        count: Cases.
        seed: Of the draws.

    Returns:
        The cases.
    """
    rng = random.Random(seed)
    words = [f for f in FIELDS if pool[f.key] and not any(c.isdigit() for v in pool[f.key] for c in v)]
    figures = [f for f in FIELDS if any(_n_digits(v) >= _MIN_DIGITS for v in pool[f.key])]
    cases = []
    for _ in range(count):
        name, field = invented_name(rng), rng.choice(figures)
        statements = [
            _say(rng.choice(f.statements), name, rng.choice(pool[f.key])) for f in rng.sample(words, _N_LINES)
        ]
        if task == "number":
            value = scramble(rng.choice([v for v in pool[field.key] if _n_digits(v) >= _MIN_DIGITS]), rng, words=0.0)
            statement, asked = rng.choice(field.statements), question(field, name, rng)
        else:
            long = f"{rng.randrange(10**11, 10**12):,}"
            value = long if task == "long number" else str(uuid.UUID(int=rng.getrandbits(128), version=4))
            statement = rng.choice(_RECORD_STATEMENTS)
            asked = _say(rng.choice(TRAIN_FRAMES).replace("{n}", _RECORD), name, value)
        statements.insert(rng.randrange(_N_LINES + 1), _say(statement, name, value))
        cases.append(RecallCase(f"{name} - {field.section}\n\n" + "\n".join(statements), asked, value))
    return cases


def measure_recall(
    engine: UltraGist, task: str, cases: Sequence[RecallCase], budgets: Sequence[int], policies: Sequence[str]
) -> list[RecallRow]:
    """Ask all questions under all conditions, each with the document of another case beside its own.

    Args:
        engine: The model.
        task: Name of the set.
        cases: Its questions.
        budgets: Slots that each document may take.
        policies: Whose tokens are kept verbatim.

    Returns:
        Text, memories of every token, then gists without and with verbatim tokens at each budget; a condition is left
        out, with a warning, where some document does not fit.
    """
    texts = [case.document for case in cases]
    raw = {"verbatim": _every_token, "ratio": engine.config.window}
    plan: list[tuple[str, int | None, dict[str, Any] | None]] = [("text", None, None), ("every token", None, raw)]
    for budget in budgets:
        plan.append(("gists", budget, {"slots": budget}))
        plan += [(f"gists + {policy}", budget, {"slots": budget, "verbatim": policy}) for policy in policies]
    rows: list[RecallRow] = []
    alone: Scores | None = None
    for read_from, budget, settings in tqdm(plan, desc=task, unit="condition"):
        try:
            memories = None if settings is None else engine.compress(texts, **settings)
        except InputError as error:
            _log.warning("%s at %s slots is left out: %s", read_from, budget, error)
            continue
        answers = _ask(engine, cases, texts if memories is None else memories)
        scores = np.array([exact_match(a, [case.answer]) for a, case in zip(answers, cases, strict=True)])
        in_order = np.array([_in_order(a, case.answer) for a, case in zip(answers, cases, strict=True)])
        alone = scores if read_from == "gists" else alone
        paired = bootstrap(difference, scores, alone) if alone is not None and read_from != "gists" else None
        kept = [0.0] if memories is None else [memory.n_verbatim for memory in memories]
        slots = [0.0] if memories is None else [memory.slots for memory in memories]
        both = (bootstrap(mean, scores), bootstrap(mean, in_order))
        rows.append(
            RecallRow(task, read_from, budget, float(np.mean(slots)), float(np.mean(kept)), *both, paired, len(cases))
        )
    return rows


def recall_table(rows: Sequence[RecallRow]) -> Table:
    """The rows as a rich table."""
    out = Table("asked for", "read from", "slots", "verbatim", "exact match (95 %)", "characters (95 %)", "gain (95 %)")
    for row in rows:
        out.add_row(
            f"{row.task} ({row.questions})",
            row.read_from,
            f"{row.slots:.1f}" + ("" if row.budget is None else f" of {row.budget}"),
            f"{row.n_verbatim:.1f}",
            interval(row.exact_match),
            interval(row.characters),
            "" if row.difference is None else interval(row.difference),
        )
    return out


def _every_token(_text: str, offsets: Offsets) -> list[bool]:
    return [True] * len(offsets)


def _say(statement: str, name: str, value: str) -> str:
    return statement.replace("{c}", name).replace("{v}", value)


def _n_digits(value: str) -> int:
    return sum(character.isdigit() for character in value)


def _ask(engine: UltraGist, cases: Sequence[RecallCase], shown: Sequence[str | GistMemory]) -> list[str]:
    answers: list[str] = []
    for start in range(0, len(cases), _BATCH):
        prompts: list[list[str | GistMemory]] = []
        for place in range(start, min(start + _BATCH, len(cases))):
            both = [shown[place], shown[(place + 1) % len(cases)]]
            first, second = both if place % 2 else both[::-1]
            prompts.append([first, "\n\n", second, f"\n\nQuestion: {cases[place].question}\nAnswer:"])
        answers += read(engine, prompts)
    return answers


def _in_order(answer: str, value: str) -> float:
    blocks = SequenceMatcher(None, value, answer, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(value)
