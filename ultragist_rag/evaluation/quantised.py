"""What answers lose when memories are stored in fewer bits.

Is        the same questions asked of the same memories in bfloat16, int8 and int4, and the differences, paired.
Flow      heldout, answering, metrics, store.quantise -> [quantised] -> cli.
Change    which number formats are compared, what a row says.
Not here  how memories are quantised -> store/quantise.py.
Holds     all formats are of one memory each: nothing but the numbers in it differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.answering import compose, compress_documents, read
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.evaluation.metrics import Scores, bootstrap, difference, exact_match, mean
from ultragist_rag.evaluation.report import case_sets, interval
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store.quantise import as_stored, check_kind, quantisation_report

__all__ = ["QuantisedRow", "evaluate_quantised", "measure_quantised", "quantised_table"]

RATIO = 4
"""Raw tokens per gist: where memories say most, fewer bits can lose most."""

_PLAIN = "bfloat16"
_BATCH = 16


@dataclass(frozen=True, slots=True)
class QuantisedRow:
    """One number format on one set of questions.

    Attributes:
        task: Name of the set.
        dtype: `bfloat16`, `int8` or `int4`.
        ratio: Raw tokens per gist.
        questions: How many.
        exact_match: Share of right answers with its 95 % interval.
        difference: What it has more than bfloat16, with the 95 % interval over the same questions.
        changed: Share of answers that are not, word by word, those of bfloat16.
        key_error: Relative error of keys, mean over the documents.
        value_error: Relative error of values, mean over the documents.
        n_bytes: Bytes of keys and values, grids included, mean over the documents.
    """

    task: str
    dtype: str
    ratio: int
    questions: int
    exact_match: tuple[float, float, float]
    difference: tuple[float, float, float]
    changed: float
    key_error: float
    value_error: float
    n_bytes: float

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self)


def evaluate_quantised(
    model: str, data: Path | None, corpus: tuple[Path, Path], kinds: Sequence[str], limit: int | None = None
) -> list[QuantisedRow]:
    """Measure a model on the example corpus and, with a data folder, on the factbook's own chunks.

    Args:
        model: `bundled`, a folder or a hub id.
        data: Folder with train/ and qa_train/.
        corpus: Folder of profiles and file of questions.
        kinds: `int8`, `int4` or both.
        limit: Only so many questions of each set, spread over it evenly.

    Returns:
        The rows of all sets.

    Raises:
        InputError: If a kind is unknown, or a file is missing.
    """
    checked = [check_kind(kind) for kind in kinds]
    sets = case_sets(data, corpus, limit)
    engine = UltraGist.from_pretrained(model)
    return [row for name, cases in sets.items() for row in measure_quantised(name, cases, engine, checked)]


def measure_quantised(
    task: str, cases: Sequence[Case], engine: UltraGist, kinds: Sequence[str], ratio: int = RATIO
) -> list[QuantisedRow]:
    """Answers from memories in bfloat16 and quantised, documents compressed one by one.

    Args:
        task: Name of the set.
        cases: Its questions.
        engine: The model measured.
        kinds: Quantisations.
        ratio: Raw tokens per gist.

    Returns:
        One row for bfloat16, then one for each kind.
    """
    dtypes = (_PLAIN, *kinds)
    answers: dict[str, list[str]] = {dtype: [] for dtype in dtypes}
    costs: dict[str, dict[str, tuple[float, float, int]]] = {dtype: {} for dtype in dtypes}
    with tqdm(total=len(cases) * len(dtypes), desc=f"{task} x{ratio}", unit="answer") as bar:
        for start in range(0, len(cases), _BATCH):
            part = cases[start : start + _BATCH]
            exact = {
                text: memory.to(torch.bfloat16) for text, memory in compress_documents(engine, part, ratio).items()
            }
            for dtype in dtypes:
                kind = None if dtype == _PLAIN else dtype
                stored = {text: as_stored(memory, kind) for text, memory in exact.items()}
                answers[dtype] += read(engine, compose(part, stored))
                costs[dtype] |= {text: _cost(memory, kind) for text, memory in exact.items()}
                bar.update(len(part))
    scores = {dtype: _scores(cases, texts) for dtype, texts in answers.items()}
    return [
        QuantisedRow(
            task,
            dtype,
            ratio,
            len(cases),
            bootstrap(mean, scores[dtype]),
            bootstrap(difference, scores[dtype], scores[_PLAIN]),
            sum(map(str.__ne__, answers[dtype], answers[_PLAIN])) / len(cases),
            *map(float, np.mean(list(costs[dtype].values()), axis=0)),
        )
        for dtype in dtypes
    ]


def _cost(memory: GistMemory, kind: str | None) -> tuple[float, float, int]:
    if kind is None:
        return 0.0, 0.0, memory.nbytes
    report = quantisation_report(memory, kind)
    return report.key_error, report.value_error, report.n_bytes


def _scores(cases: Sequence[Case], answers: Sequence[str]) -> Scores:
    return np.array([exact_match(a, case.answers) for a, case in zip(answers, cases, strict=True)], dtype=np.float64)


def quantised_table(rows: Sequence[QuantisedRow]) -> Table:
    """The rows as a rich table."""
    out = Table(
        "set",
        "stored as",
        "exact match (95 %)",
        "difference (95 %)",
        "other answers",
        "error of keys, values",
        "KiB a document",
        "questions",
    )
    for row in rows:
        out.add_row(
            row.task,
            row.dtype,
            interval(row.exact_match),
            interval(row.difference),
            f"{row.changed:.3f}",
            f"{row.key_error:.4f}, {row.value_error:.4f}",
            f"{row.n_bytes / 1024:.1f}",
            str(row.questions),
        )
    return out
