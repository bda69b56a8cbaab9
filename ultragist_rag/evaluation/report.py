"""Measure a model on the held-out countries and tell what its memories keep.

Is        the loop over methods, and its rows.
Flow      heldout, answering, metrics -> [report] -> bars, quantised, recall.
Change    which methods and ratios are measured, what a row says.
Not here  what is good enough -> bars.py.
Holds     retention is against the best full-text score of all models given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.answering import predict
from ultragist_rag.evaluation.environment import versions
from ultragist_rag.evaluation.heldout import Case, corpus_cases, factbook_cases
from ultragist_rag.evaluation.intervals import Interval
from ultragist_rag.evaluation.metrics import Scores, bootstrap, difference, exact_match, mean, retention, spread

RATIOS = (4, 8, 16, 32)
BEFORE = "full, before gist training"
"""Method of the row of the base."""

HELD = "+source_bias"
"""End of the method of a row whose answers are held to the words of their prompts, see `Decoding.source_bias`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one set of questions.

    Attributes:
        task: Name of the set.
        method: `full`, `composed`, `joint`, `closed`, or `BEFORE`; the first three also with `HELD` behind them.
        ratio: Raw tokens per gist; None for methods without.
        questions: How many.
        exact_match: Share of right answers with its 95 % interval.
        retention: The same over the better full-text score.
        against_joint: Exact match minus that of joint memories at the same ratio, decoded alike, paired; None but for
            `composed`.
        unseen: Exact match on questions in wordings that training never saw; None if there are none.
        n_unseen: How many these are.
    """

    task: str
    method: str
    ratio: int | None
    questions: int
    exact_match: Interval
    retention: Interval
    against_joint: Interval | None
    unseen: Interval | None
    n_unseen: int

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


def measure(
    task: str,
    cases: Sequence[Case],
    engine: UltraGist,
    base: UltraGist | None = None,
    ratios: Sequence[int] = RATIOS,
    source_bias: float = 0.0,
) -> list[Row]:
    """Full text, memories composed and joint at every ratio, and no document, on one set of cases.

    With a bias, all but that without document once more with it; retention of these rows is against the better of the
    full-text scores with and without.

    Args:
        task: Name of the set.
        cases: Its questions.
        engine: The model measured.
        base: The model before gist training; if its full-text score is higher, retention is against it.
        ratios: Raw tokens per gist.
        source_bias: See `Decoding`; 0 for no such rows.

    Returns:
        One row per method and ratio.
    """
    plan: list[tuple[str, int | None]] = [("full", None)]
    plan += [(method, ratio) for method in ("composed", "joint") for ratio in ratios]
    plan.append(("closed", None))
    scores = {step: _scores(engine, cases, *step) for step in plan}
    full = scores["full", None]
    if base is not None:
        before = _scores(base, cases, "full", None)
        full = before if before.mean() > full.mean() else full
        scores = {(BEFORE, None): before, **scores}
    best = dict.fromkeys(scores, full)
    if source_bias:
        held = {
            (method + HELD, ratio): _scores(engine, cases, method, ratio, source_bias)
            for method, ratio in plan
            if method != "closed"
        }
        held_full = held["full" + HELD, None]
        best |= dict.fromkeys(held, held_full if held_full.mean() > full.mean() else full)
        scores |= held
    reworded = np.array([case.heldout for case in cases])
    n_unseen = int(reworded.sum())
    return [
        Row(
            task,
            method,
            ratio,
            len(cases),
            bootstrap(mean, values),
            bootstrap(retention, values, best[method, ratio]),
            _against_joint(scores, method, ratio),
            bootstrap(mean, values[reworded]) if n_unseen else None,
            n_unseen,
        )
        for (method, ratio), values in scores.items()
    ]


def _against_joint(scores: Mapping[tuple[str, int | None], Scores], method: str, ratio: int | None) -> Interval | None:
    if method.removesuffix(HELD) != "composed":
        return None
    return bootstrap(difference, scores[method, ratio], scores[method.replace("composed", "joint"), ratio])


def case_sets(data: Path | None, corpus: tuple[Path, Path], limit: int | None = None) -> dict[str, list[Case]]:
    """The example corpus and, with a data folder, the factbook; at most `limit` questions of each, spread evenly."""
    sets = {"corpus": corpus_cases(*corpus)}
    if data is not None:
        sets["factbook"] = factbook_cases(data)
    return {name: spread(cases, limit) for name, cases in sets.items()}


def write_rows(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as JSON, with the versions they were measured with."""
    write_json({"versions": versions(), "rows": list(rows)}, path)


def write_json(record: Mapping[str, object], path: Path) -> None:
    """Write a record as JSON; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _scores(
    engine: UltraGist, cases: Sequence[Case], method: str, ratio: int | None, source_bias: float = 0.0
) -> Scores:
    answers = predict(engine, cases, method, ratio, source_bias=source_bias)
    return np.array([exact_match(a, case.answers) for a, case in zip(answers, cases, strict=True)], dtype=np.float64)


def interval(values: Sequence[float]) -> str:
    """A value with its interval, for a table."""
    value, low, high = values
    return f"{value:.3f} ({low:.3f}-{high:.3f})"
