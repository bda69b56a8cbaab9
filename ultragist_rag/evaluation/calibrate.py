"""Measure what composing costs: answers and next tokens from composed memories, joint ones, plain text, no document.

Is        the loop over ratios that fills a `Calibration`, its built-in questions, its table.
Flow      answering, metrics, tasks.places, modeling.calibration -> [calibrate] -> cli_calibrate.
Change    the questions, what is measured of each.
Not here  the rule and the file -> modeling/calibration.py; the command -> cli_calibrate.py.
Holds     equal questions and weights give equal figures; a way to read that is the plain text diverges by 0.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.answering import Pieces, lay_out
from ultragist_rag.evaluation.environment import versions
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.evaluation.metrics import bootstrap, exact_match, mean, normalise
from ultragist_rag.evaluation.tasks.places import Fact, Page, askable, draw_places, page
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import check_fit, to_prompt
from ultragist_rag.memory.prompt import count_prompt, prompt_forward
from ultragist_rag.modeling.calibration import Calibration, Figures, Method, Thresholds, settings_of
from ultragist_rag.training.country_fields import SECTIONS

__all__ = [
    "QUESTIONS",
    "calibrate",
    "calibration_table",
    "divergence",
    "invented_cases",
    "next_tokens",
    "read_cases",
]

QUESTIONS = 60
_BATCH = 8
_LINES = (4, 8)
_DECODING = Decoding(max_new_tokens=48, stop=("\n",), source_bias=0.0)
"""Of the values that are asked for, which are short."""

_Way = tuple[Method, int | None]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came of some questions, asked in one way.

    Attributes:
        answers: Greedy answers.
        ids: Their tokens, shape (tokens,).
        next_tokens: Of `next_tokens`, behind the tokens that the plain text answered.
    """

    answers: list[str]
    ids: list[Tensor]
    next_tokens: list[Tensor]


def invented_cases(count: int = QUESTIONS, seed: int = 0) -> list[Case]:
    """Draw questions about places that do not exist, each with the page that answers it and three others.

    Args:
        count: How many.
        seed: Of the draws.

    Returns:
        The cases.
    """
    return [_draw(random.Random(f"{seed}/calibration/{index}")) for index in range(count)]


def read_cases(path: Path) -> list[Case]:
    """Read questions of one's own.

    Args:
        path: JSON lines with `question`, `answers` and `documents`, the last two lists of texts.

    Returns:
        The cases.

    Raises:
        InputError: If the file is missing or a line has something else.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}. Name a file of JSON lines.") from error
    return [_case(line, f"line {number} of {str(path)!r}") for number, line in enumerate(lines, 1)]


def calibrate(
    engine: UltraGist,
    cases: Sequence[Case] | None = None,
    ratios: Sequence[int] | None = None,
    *,
    thresholds: Thresholds | None = None,
    command: str = "",
) -> Calibration:
    """Measure how composed memories answer beside joint ones, the plain text and no document.

    All ways are asked the same questions. The answer from the plain text is decoded greedily; then every way reads it
    behind its own prompt, and its next-token probabilities are held against those behind the plain text, token by
    token and once more behind the last one.

    Args:
        engine: The model; its own calibration changes nothing here.
        cases: Questions with documents; None for `invented_cases`.
        ratios: Raw tokens per gist token; None for those of the model.
        thresholds: For the verdict, kept with the figures.
        command: What is noted as the way to repeat it.

    Returns:
        The calibration; `engine.calibration = ...` makes it count, `write` keeps it.

    Raises:
        InputError: If there is no case, or a ratio is no whole number of at least 1.
    """
    asked = invented_cases() if cases is None else list(cases)
    wanted = sorted(set(ratios) if ratios is not None else set(engine.config.choices) - {0})
    if not asked or not wanted or wanted[0] < 1:
        raise InputError(f"{len(asked)} questions at the ratios {wanted}: give one of each at least, ratios from 1 on.")
    ways: list[_Way] = [("plain", None), ("closed", None)]
    ways += [(method, ratio) for ratio in wanted for method in ("joint", "composed")]
    scores: dict[_Way, dict[str, list[float]]] = {way: {} for way in ways}
    with warnings.catch_warnings(), tqdm(total=len(asked), desc="calibrate", unit="question") as bar:
        warnings.filterwarnings("ignore", message=".*independently compressed documents.*")
        for start in range(0, len(asked), _BATCH):
            part = asked[start : start + _BATCH]
            _score(engine, part, scores)
            bar.update(len(part))
    figures = [_figures(way, of_way) for way, of_way in scores.items()]
    return Calibration(
        fingerprint=engine.fingerprint,
        tokenizer_fingerprint=engine.tokenizer_fingerprint,
        settings=settings_of(engine.config),
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        versions=versions(),
        questions=len(asked),
        figures=tuple(figures),
        thresholds=thresholds or Thresholds(),
    )


@torch.no_grad()
def next_tokens(engine: UltraGist, prompts: Sequence[Pieces], answers: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities of the next token behind prompts, and behind each token of the answers to them.

    Args:
        engine: The model.
        prompts: Texts and memories.
        answers: Token ids of shape (tokens,), one row for each prompt.

    Returns:
        For each prompt shape (tokens + 1, vocab), in double precision, on the CPU.

    Raises:
        ContextOverflowError: If prompt and answer need more positions than there are.
    """
    rows: list[list[Tensor | GistMemory]] = [
        [*to_prompt(engine, pieces), ids.cpu()] for pieces, ids in zip(prompts, answers, strict=True)
    ]
    check_fit(rows, 0, engine.max_positions)
    counts = [count_prompt(row)[1] for row in rows]
    wanted = [torch.arange(n - len(ids) - 1, n) for n, ids in zip(counts, answers, strict=True)]
    with engine.attachment.lock:
        logits = prompt_forward(engine.attachment, rows, wanted=wanted).logits
    return [row.cpu().double().log_softmax(-1) for row in logits]


def divergence(reference: Tensor, other: Tensor) -> float:
    """KL(reference || other) in nats, the mean over positions.

    Args:
        reference: Log-probabilities, shape (positions, vocab).
        other: The same.

    Returns:
        The divergence; 0 for equal ones.
    """
    return float((reference.exp() * (reference - other)).sum(-1).mean())


def calibration_table(calibration: Calibration) -> Table:
    """The figures as a rich table, with the verdict on each ratio."""
    out = Table("read from", "ratio", "exact match", "same as plain", "KL from plain", "same as joint", "verdict")
    for one in calibration.figures:
        good = one.method == "composed" and calibration.is_good(one.ratio or 0)
        out.add_row(
            one.method,
            "" if one.ratio is None else str(one.ratio),
            *(_shown(value) for value in (one.exact_match, one.agreement, one.kl, one.joint_agreement)),
            "" if one.method != "composed" else "memories" if good else "text instead",
        )
    return out


def _case(line: str, where: str) -> Case:
    try:
        entry = json.loads(line)
        question, answers, documents = (entry[name] for name in ("question", "answers", "documents"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} is no question ({error}): give question, answers and documents.") from error
    texts = [question, *answers, *documents] if isinstance(answers, list) and isinstance(documents, list) else [None]
    if not documents or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f"{where} is no question: `question` must be a text, `answers` and `documents` lists of texts."
        )
    gold = next((place for place, text in enumerate(documents) if any(one in text for one in answers)), 0)
    return Case(question, tuple(answers), tuple(documents), True, gold)


def _draw(rng: random.Random) -> Case:
    pages, fact = _draw_pages(rng)
    asked = fact.question(pages[0].name, rng)
    texts = [one.text for one in pages]
    gold = texts[0]
    rng.shuffle(texts)
    return Case(asked, (fact.value,), tuple(texts), False, texts.index(gold))


def _draw_pages(rng: random.Random) -> tuple[list[Page], Fact]:
    """Pages, the one that answers first, and the fact that is asked for; two others share its place or its section."""
    while True:
        here, there, elsewhere = draw_places(rng, 3)
        first, second = rng.sample(SECTIONS, 2)
        chosen = [(here, first), (here, second), (there, first), (elsewhere, rng.choice(SECTIONS))]
        pages = [page(place, section, rng, _LINES) for place, section in chosen]
        facts = askable(pages[0].lines, [one.text for one in pages])
        if facts:
            return pages, rng.choice(facts)


def _score(engine: UltraGist, cases: Sequence[Case], scores: Mapping[_Way, dict[str, list[float]]]) -> None:
    """Ask some questions in all ways, and add what came of them to the scores."""
    plain = joint = None
    for (method, ratio), of_way in scores.items():
        seen = _see(engine, cases, method, ratio, plain)
        plain = plain or seen
        joint = seen if method == "joint" else joint
        right = [exact_match(said, case.answers) for said, case in zip(seen.answers, cases, strict=True)]
        found = {"exact_match": right, **_beside(seen, plain)}
        if method == "composed" and joint is not None:
            found |= {f"joint_{name}": values for name, values in _beside(seen, joint).items()}
        for name, values in found.items():
            of_way.setdefault(name, []).extend(values)


def _see(engine: UltraGist, cases: Sequence[Case], method: Method, ratio: int | None, plain: _Seen | None) -> _Seen:
    """Ask some questions in one way; what is read behind the prompts are the answers of `plain`, by default its own."""
    prompts = lay_out(engine, cases, "full" if method == "plain" else method, ratio)
    given = [one for (one,) in answer(engine, prompts, _DECODING)]
    ids = [one.ids for one in given]
    return _Seen([one.text.strip() for one in given], ids, next_tokens(engine, prompts, plain.ids if plain else ids))


def _beside(seen: _Seen, other: _Seen) -> dict[str, list[float]]:
    return {
        "agreement": [float(normalise(a) == normalise(b)) for a, b in zip(seen.answers, other.answers, strict=True)],
        "kl": [divergence(b, a) for a, b in zip(seen.next_tokens, other.next_tokens, strict=True)],
    }


def _figures(way: _Way, scores: Mapping[str, Sequence[float]]) -> Figures:
    method, ratio = way
    return Figures(method=method, ratio=ratio, **{name: _interval(values) for name, values in scores.items()})


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    value, low, high = (round(one, 6) for one in bootstrap(mean, np.array(values)))
    return value, low, high


def _shown(values: tuple[float, float, float] | None) -> str:
    return "" if values is None else "{:.3f} ({:.3f}-{:.3f})".format(*values)
