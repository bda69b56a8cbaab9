"""How well do source scores find the document that an answer is from?

Is        scores of every document of held-out questions, against the one that holds the answer: area under the curve.
Flow      heldout, answering, memory.attribution -> [attribution] -> cli_attribution.
Change    which ways to score are compared.
Not here  the scores that users get -> memory/attribution.py; cases -> heldout.py.
Holds     all ways score the same answers to the same prompts; equal seeds give equal rows but for the seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.answering import compose
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.evaluation.metrics import Scores, bootstrap, exact_match, mean
from ultragist_rag.evaluation.report import interval
from ultragist_rag.memory.attribution import AttentionMass, attention_mass, leave_one_out_sources
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer, askable
from ultragist_rag.memory.memory import GistMemory

__all__ = ["KINDS", "AttributionRow", "attribution_table", "measure_attribution"]

_BATCH = 16
_DECODING = Decoding(max_new_tokens=96, stop=("\n",), source_bias=0.0)
_LEAVE_ONE_OUT = "leave-one-out"


def _plain(mass: AttentionMass) -> list[float]:
    return _shares(mass.memories.mean((0, 1)))


def _best_head(mass: AttentionMass) -> list[float]:
    return _shares(mass.memories.amax((0, 1)))


def _shares(weights: Tensor) -> list[float]:
    shares: list[float] = (weights / weights.sum().clamp(min=1e-30)).tolist()
    return shares


_WEIGHINGS: dict[str, Callable[[AttentionMass], list[float]]] = {
    "attention": AttentionMass.scores,
    "attention, not per slot": _plain,
    "attention, best head": _best_head,
}

KINDS = (*_WEIGHINGS, _LEAVE_ONE_OUT)
"""Ways to score: those of `sources`, and two that attention could be read in as well."""


@dataclass(frozen=True, slots=True)
class AttributionRow:
    """One way to score.

    Attributes:
        kind: One of `KINDS`.
        ratios: Raw tokens per gist of the documents.
        questions: Questions asked.
        right: How many were answered right.
        auc: Area under the curve of the scores of all documents, the gold ones against the others, with its 95 %
            interval over questions; None if there is nothing to tell apart.
        auc_right: The same over the questions that were answered right: only these were surely read from the gold one.
        top1: Share of questions whose gold document has the highest score, with its 95 % interval.
        seconds: For the scores of one question, after it was answered.
    """

    kind: str
    ratios: tuple[int, ...]
    questions: int
    right: int
    auc: tuple[float, float, float] | None
    auc_right: tuple[float, float, float] | None
    top1: tuple[float, float, float]
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


def measure_attribution(
    engine: UltraGist, cases: Sequence[Case], ratios: Sequence[int], kinds: Sequence[str] = KINDS, seed: int = 0
) -> list[AttributionRow]:
    """Answer questions from the memories of their documents, and score the documents.

    Args:
        engine: The model.
        cases: Questions with documents, one of them gold.
        ratios: Raw tokens per gist token; of several, each document gets one by lot, so that memories differ in size.
        kinds: Of `KINDS`.
        seed: Of the lots.

    Returns:
        One row per kind.

    Raises:
        InputError: If a kind is unknown, or there are no cases.
    """
    strange = sorted(set(kinds) - set(KINDS))
    if strange or not cases:
        raise InputError(f"kinds {strange} of {len(cases)} questions: ask some, and name kinds of {', '.join(KINDS)}.")
    memories = _compress(engine, cases, ratios, seed)
    scores: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    seconds = dict.fromkeys(kinds, 0.0)
    right: list[bool] = []
    with tqdm(total=len(cases), desc="attribution", unit="question") as bar:
        for start in range(0, len(cases), _BATCH):
            part = cases[start : start + _BATCH]
            prompts = askable(engine, compose(part, memories), _DECODING)
            answers = [one for (one,) in answer(engine, prompts, _DECODING)]
            right += [exact_match(one.text.strip(), case.answers) > 0 for one, case in zip(answers, part, strict=True)]
            for kind, (found, took) in _score(engine, prompts, [one.ids for one in answers], kinds).items():
                scores[kind] += found
                seconds[kind] += took
            bar.update(len(part))
    gold = [case.gold for case in cases]
    return [_row(kind, tuple(ratios), scores[kind], gold, right, seconds[kind]) for kind in kinds]


def attribution_table(rows: Sequence[AttributionRow]) -> Table:
    """The rows as a rich table."""
    out = Table("scored by", "ratio", "questions", "AUC (95 %)", "AUC, right answers", "top 1 (95 %)", "seconds each")
    for row in rows:
        out.add_row(
            row.kind,
            ",".join(map(str, row.ratios)),
            f"{row.questions} ({row.right} right)",
            "" if row.auc is None else interval(row.auc),
            "" if row.auc_right is None else interval(row.auc_right),
            interval(row.top1),
            f"{row.seconds:.3f}",
        )
    return out


def _compress(engine: UltraGist, cases: Sequence[Case], ratios: Sequence[int], seed: int) -> dict[str, GistMemory]:
    documents = list(dict.fromkeys(document for case in cases for document in case.documents))
    rng = random.Random(seed)
    drawn = [rng.choice(ratios) for _ in documents]
    return dict(zip(documents, engine.compress(documents, ratio=drawn), strict=True))


def _score(
    engine: UltraGist, prompts: Sequence[Any], answers: Sequence[Tensor], kinds: Sequence[str]
) -> dict[str, tuple[list[list[float]], float]]:
    """Score the memories of each prompt in every way, and take the time that each way takes."""
    found: dict[str, tuple[list[list[float]], float]] = {}
    masses: list[AttentionMass] = []
    began = time.perf_counter()
    if set(kinds) & set(_WEIGHINGS):
        masses = attention_mass(engine, prompts, answers)
    looked = time.perf_counter() - began
    for kind in kinds:
        began = time.perf_counter()
        if kind == _LEAVE_ONE_OUT:
            rows = [leave_one_out_sources(engine, prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]
            found[kind] = rows, time.perf_counter() - began
        else:
            rows = [_WEIGHINGS[kind](mass) for mass in masses]
            found[kind] = rows, looked + time.perf_counter() - began
    return found


def _row(
    kind: str,
    ratios: tuple[int, ...],
    rows: Sequence[Sequence[float]],
    places: Sequence[int],
    right: Sequence[bool],
    seconds: float,
) -> AttributionRow:
    scores = np.full((len(rows), max(map(len, rows))), np.nan)  # (questions, documents); NaN where there is none
    for target, row in zip(scores, rows, strict=True):
        target[: len(row)] = row
    gold = np.zeros_like(scores)
    gold[np.arange(len(rows)), places] = 1.0
    is_right = np.array(right)
    hits = (np.nanargmax(scores, axis=1) == places).astype(np.float64)
    return AttributionRow(
        kind=kind,
        ratios=ratios,
        questions=len(rows),
        right=int(is_right.sum()),
        auc=_area(scores, gold),
        auc_right=_area(scores[is_right], gold[is_right]) if is_right.any() else None,
        top1=bootstrap(mean, hits),
        seconds=seconds / len(rows),
    )


def _area(scores: Scores, gold: Scores, draws: int = 2000) -> tuple[float, float, float] | None:
    """Area under the curve over all documents of all questions, with its 95 % interval over resampled questions.

    The area is the share of pairs, one gold document and one other, that the scores have in the right order. Pairs are
    counted once for every two questions, so that resampling only weighs the counts. None if all documents are gold.
    """
    from sklearn.metrics import roc_auc_score

    known = ~np.isnan(scores)
    is_gold, is_other = (gold > 0) & known, (gold == 0) & known
    if not is_other.any():
        return None
    value = float(roc_auc_score(gold[known], scores[known]))
    mine, theirs = scores[:, None, :, None], scores[None, :, None, :]  # of two questions, of two documents
    compared = is_gold[:, None, :, None] & is_other[None, :, None, :]
    wins = np.where(compared, (mine > theirs) + 0.5 * (mine == theirs), 0.0).sum((2, 3))
    pairs = compared.sum((2, 3))
    drawn = np.random.default_rng(0).integers(0, len(scores), (draws, len(scores)))
    counts = np.stack([np.bincount(row, minlength=len(scores)) for row in drawn])
    areas = ((counts @ wins) * counts).sum(1) / np.maximum(((counts @ pairs) * counts).sum(1), 1)
    low, high = np.quantile(areas, (0.025, 0.975))
    return value, float(low), float(high)
