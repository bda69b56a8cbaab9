"""Measure a model on the held-out countries and tell what its memories keep.

Is        the loop over methods, its rows, and their table.
Flow      heldout, answering, metrics -> [report] -> cli.
Change    which methods and ratios are measured, what a row says.
Holds     retention is against the best full-text score of all models given.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.table import Table

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.answering import predict
from ultragist_rag.evaluation.heldout import Case, corpus_cases, factbook_cases
from ultragist_rag.evaluation.metrics import Scores, bootstrap, exact_match, mean, retention, spread

RATIOS = (2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one set: exact match and retention, each with its 95 % interval."""

    task: str
    method: str
    ratio: int | None
    questions: int
    exact_match: tuple[float, float, float]
    retention: tuple[float, float, float]
    heldout_wording: float

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


def measure(
    task: str,
    cases: Sequence[Case],
    engine: UltraGist,
    base: UltraGist | None = None,
    ratios: Sequence[int] = RATIOS,
) -> list[Row]:
    """Full text, memories composed and joint at every ratio, and no document, on one set of cases.

    Args:
        task: Name of the set.
        cases: Its questions.
        engine: The model measured.
        base: The model before gist training; if its full-text score is higher, retention is against it.
        ratios: Raw tokens per gist.

    Returns:
        One row per method and ratio.
    """
    plan: list[tuple[str, int | None]] = [("full", None)]
    plan += [(method, ratio) for method in ("composed", "joint") for ratio in ratios]
    plan.append(("closed", None))
    scores = {step: _scores(engine, cases, *step) for step in plan}
    full = scores["full", None]
    rows = []
    if base is not None:
        before = _scores(base, cases, "full", None)
        full = before if before.mean() > full.mean() else full
        scores = {("full, before gist training", None): before, **scores}
    reworded = np.array([case.heldout for case in cases])
    for (method, ratio), values in scores.items():
        asked = values[reworded].mean() if reworded.any() else float("nan")
        kept = bootstrap(retention, values, full)
        rows.append(Row(task, method, ratio, len(cases), bootstrap(mean, values), kept, float(asked)))
    return rows


def evaluate_model(
    model: str, base: str | None, data: Path | None, corpus: tuple[Path, Path], limit: int | None = None
) -> list[Row]:
    """Measure a model on the example corpus and, with a data folder, on the factbook's own chunks.

    Args:
        model: `bundled`, a folder or a hub id.
        base: Folder or hub id of the model before gist training; its full-text score may be the denominator.
        data: Folder with train/ and qa_train/.
        corpus: Folder of profiles and file of questions.
        limit: Only so many questions of each set, spread over it evenly.

    Returns:
        The rows of all sets.
    """
    sets = case_sets(data, corpus, limit)
    engine = UltraGist.from_pretrained(model)
    before = None
    if base is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*untrained.*")
            before = UltraGist.from_pretrained(base)
    return [row for name, cases in sets.items() for row in measure(name, cases, engine, before)]


def case_sets(data: Path | None, corpus: tuple[Path, Path], limit: int | None = None) -> dict[str, list[Case]]:
    """The example corpus and, with a data folder, the factbook; at most `limit` questions of each, spread evenly."""
    sets = {"corpus": corpus_cases(*corpus)}
    if data is not None:
        sets["factbook"] = factbook_cases(data)
    return {name: spread(cases, limit) for name, cases in sets.items()}


def write_rows(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows as JSON, with the versions they were measured with."""
    record = {"versions": versions(), "rows": list(rows)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    return {name: metadata.version(name) for name in ("torch", "transformers")}


def _scores(engine: UltraGist, cases: Sequence[Case], method: str, ratio: int | None) -> Scores:
    answers = predict(engine, cases, method, ratio)
    return np.array([exact_match(a, case.answers) for a, case in zip(answers, cases, strict=True)], dtype=np.float64)


def table(rows: Sequence[Row]) -> Table:
    """The rows as a rich table."""
    out = Table("set", "method", "ratio", "exact match (95 %)", "kept (95 %)", "unseen wordings", "questions")
    for row in rows:
        out.add_row(
            row.task,
            row.method,
            "" if row.ratio is None else str(row.ratio),
            interval(row.exact_match),
            interval(row.retention),
            f"{row.heldout_wording:.3f}",
            str(row.questions),
        )
    return out


def interval(values: tuple[float, float, float]) -> str:
    """A value with its interval, for a table."""
    value, low, high = values
    return f"{value:.3f} ({low:.3f}-{high:.3f})"
