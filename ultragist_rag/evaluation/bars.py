"""Hold a model to the bars of quality that the bundled model is to meet.

Is        what is measured, how good it has to be, and one row for each bar.
Flow      report, batched, environment -> [bars] -> cli_bars, card.
Change    a bar, a task, a ratio.
Not here  questions and tasks -> heldout.py, tasks/; the model card -> card.py.
Holds     equal weights, data and limits give equal rows; the measured value meets a bar or misses it, not its interval.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.batched import fitted_samples, score_samples
from ultragist_rag.evaluation.environment import describe
from ultragist_rag.evaluation.intervals import Interval
from ultragist_rag.evaluation.metrics import bootstrap, mean, perplexity, retention
from ultragist_rag.evaluation.report import BEFORE, HELD, Row, case_sets, interval, measure
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import Scores, Task, suite_tasks

__all__ = ["Bar", "Measured", "TaskRow", "bars_of", "bars_table", "measure_bars"]

FULL_TEXT = 0.80
KEPT = {4: 0.99, 8: 0.94, 16: 0.91, 32: 0.88}
"""What composed memories keep of the full-text score on questions about unseen countries, by ratio."""

AGAINST_JOINT = -0.02
NEEDLES_KEPT, UUID_FULL_TEXT, UUID_KEPT = 0.95, 0.80, 0.90

RATIO = 4
"""Of all tasks but perplexity."""

_NEEDLES = ("recall/mk_word", "recall/number")
_UUIDS = ("recall/uuid", "recall/mk_uuid")
_READING = ("rag/xquad", "rag/policyqa")
_PERPLEXITY = "perplexity/wikitext2"
_PERPLEXITY_RATIOS = (2, 4, 8, 16, 32)
_CONTEXT = 1024
"""Tokens that the context of a task may have, whatever the positions of the model."""

_SAMPLES = 200
"""Of each task, at most."""

_CODES = "gist+codes"
_PLAIN = "full, plain decoding"
_ROUNDING = 1e-9

Cell = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One method on one task.

    Attributes:
        task: Name of the task.
        metric: `subem`, `em`, `f1`, or `ppl`, of which less is better.
        method: As in `ultragist-rag eval`, or `BEFORE`.
        ratio: Raw tokens per gist; None for methods without.
        questions: How many samples.
        score: Mean of the metric, or perplexity, with its 95 % interval.
        kept: The same over the better full-text score; None where no bar is about it.
    """

    task: str
    metric: str
    method: str
    ratio: int | None
    questions: int
    score: Interval
    kept: Interval | None


@dataclass(frozen=True, slots=True)
class Bar:
    """One measured value, and how high it has to be.

    Attributes:
        what: What was measured.
        value: With its 95 % interval.
        bar: Least value; None if it is reported without a bar.
        questions: How many it is over.
        plain: Whether it is of plain decoding, though the model has a `source_bias` of its own.
    """

    what: str
    value: Interval
    bar: float | None
    questions: int
    plain: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the bar; None without a bar."""
        return None if self.bar is None else bool(self.value[0] >= self.bar - _ROUNDING)


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that was measured, and on what.

    Attributes:
        facts: Model, source_bias, base, limit, seed, date, command, device, versions, seconds.
        countries: Questions about unseen countries.
        tasks: Needles, UUIDs, reading, perplexity.
    """

    facts: Mapping[str, Any]
    countries: Sequence[Row]
    tasks: Sequence[TaskRow]

    @property
    def bars(self) -> list[Bar]:
        """The bars."""
        return bars_of(self.countries, self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; what has no value is None."""
        found: dict[str, Any] = _known(
            {
                **self.facts,
                "bars": [{**asdict(bar), "met": bar.met} for bar in self.bars],
                "countries": [row.to_dict() for row in self.countries],
                "tasks": [asdict(row) for row in self.tasks],
            }
        )
        return found


def measure_bars(
    model: str, base: str | None, data: Path, corpus: tuple[Path, Path], limit: int | None = None, seed: int = 0
) -> Measured:
    """Measure a model on everything that has a bar, and on what is reported beside it.

    Answers are decoded as the model's own `source_bias` says; by plain decoding, too, those about unseen countries and
    those from the full text of needles and UUIDs.

    Args:
        model: `bundled`, a folder or a hub id.
        base: Folder or hub id of the model before gist training; its full-text score may be the denominator.
        data: Folder with train/, qa_train/ and eval/.
        corpus: Folder of profiles and file of questions.
        limit: Only so many questions of each set and samples of each task, spread evenly; None for all questions.
            Tasks never have more than 200.
        seed: Of what tasks draw.

    Returns:
        All rows.

    Raises:
        InputError: If data or a model are missing.
    """
    started = time.perf_counter()
    names = (*_NEEDLES, *_UUIDS, *_READING, _PERPLEXITY)
    n_samples = min(limit or _SAMPLES, _SAMPLES)
    sets = case_sets(data, corpus, limit)
    engine = UltraGist.from_pretrained(model)
    bias = engine.source_bias
    settings = EvalSettings(
        suites=names, limit=n_samples, context=_CONTEXT, seed=seed, data={"": str(data)}, source_bias=bias
    )
    before = None if base is None else _load_base(base)
    samples = {task.name: (task, fitted_samples(engine, settings, task)) for task in suite_tasks(names)}
    countries = [row for name, cases in sets.items() for row in measure(name, cases, engine, before, source_bias=bias)]
    rows: list[TaskRow] = []
    for name, (task, some) in samples.items():
        scores = {cell: score_samples(engine, settings, task, some, cell) for cell in _cells(name)}
        if name in (*_NEEDLES, *_UUIDS):
            if before is not None:
                scores[BEFORE, None] = score_samples(before, settings, task, some, ("full", None))
            if bias:
                plainly = replace(settings, source_bias=0.0)
                scores[_PLAIN, None] = score_samples(engine, plainly, task, some, ("full", None))
        rows += _task_rows(task, scores)
    facts = {
        "model": _bare(model),
        "fingerprint": engine.fingerprint,
        "source_bias": bias,
        "base": None if base is None else _bare(base),
        "limit": limit,
        "seed": seed,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": _command(model, base, limit),
        **describe(engine),
        "seconds": round(time.perf_counter() - started),
    }
    return Measured(facts, countries, rows)


def _load_base(base: str) -> UltraGist:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*untrained.*")
        return UltraGist.from_pretrained(base)


def _bare(model: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _command(model: str, base: str | None, limit: int | None) -> str:
    parts = ["ultragist-rag bars --data DATA"]
    parts += [] if model == "bundled" else [f"--model {_bare(model)}"]
    parts += [] if base is None else ["--base BASE"]
    parts += [] if limit is None else [f"--limit {limit}"]
    return " ".join(parts)


def _cells(name: str) -> list[Cell]:
    """By which methods a task is measured."""
    if name == _PERPLEXITY:
        return [("full", None), *(("gist", ratio) for ratio in _PERPLEXITY_RATIOS)]
    return [("full", None), (_CODES if name in _UUIDS else "gist", RATIO)]


def _task_rows(task: Task, scores: Mapping[Cell, Sequence[Scores]]) -> list[TaskRow]:
    if task.kind == "perplexity":
        return [_perplexity_row(task, cell, of_cell) for cell, of_cell in scores.items()]
    rows = []
    for metric in ("em", "f1") if task.name in _READING else (task.metric,):
        values = {cell: np.array([one[metric] for one in of_cell]) for cell, of_cell in scores.items()}
        full = max((values[cell] for cell in values if cell[1] is None), key=lambda one: float(one.mean()))
        for cell, some in values.items():
            kept = None if task.name in _READING else bootstrap(retention, some, full)
            rows.append(TaskRow(task.name, metric, *cell, len(some), bootstrap(mean, some), kept))
    return rows


def _perplexity_row(task: Task, cell: Cell, scores: Sequence[Scores]) -> TaskRow:
    tokens = np.array([one["tokens"] for one in scores])
    nats = np.array([one["nll"] for one in scores]) * tokens
    return TaskRow(task.name, "ppl", *cell, len(scores), bootstrap(perplexity, nats, tokens), None)


def bars_of(countries: Sequence[Row], tasks: Sequence[TaskRow]) -> list[Bar]:
    """Say what was measured of each bar, and then what is reported without one.

    Args:
        countries: Rows of `report.measure`.
        tasks: Rows of the tasks.

    Returns:
        The bars: of answers as the model gives them, then of plain decoding, then those without a least value.
    """
    has_bias = any(row.method.endswith(HELD) for row in countries)
    found = [bar for row in countries for bar in _country_bars(row, has_bias)]
    found += [bar for row in tasks for bar in _task_bars(row)]
    return sorted(found, key=lambda bar: (bar.bar is None, bar.plain))


def _country_bars(row: Row, has_bias: bool) -> list[Bar]:
    method = row.method.removesuffix(HELD)
    plain = has_bias and method == row.method and method in ("full", "composed")
    where = f"{row.task}, {_shown(method, row.ratio)}{', plain decoding' if plain else ''}"
    found = []
    if method == "full":
        found.append(Bar(f"{where}: exact match", row.exact_match, FULL_TEXT, row.questions, plain))
    if method == "composed":
        found.append(Bar(f"{where}: kept", row.retention, KEPT[row.ratio or 0], row.questions, plain))
    if row.against_joint is not None:
        found.append(Bar(f"{where}: exact match above joint", row.against_joint, AGAINST_JOINT, row.questions, plain))
    if method in ("full", "composed") and row.unseen is not None:
        found.append(Bar(f"{where}, unseen wordings: exact match", row.unseen, None, row.n_unseen, plain))
    if method in ("closed", BEFORE):
        found.append(Bar(f"{where}: exact match", row.exact_match, None, row.questions))
    return found


def _task_bars(row: TaskRow) -> list[Bar]:
    where = f"{row.task}, {_shown(row.method, row.ratio)}"
    held = row.task == _UUIDS[0]
    full_text = UUID_FULL_TEXT if held and row.method == "full" else None
    found = [Bar(f"{where}: {row.metric}", row.score, full_text, row.questions)]
    if row.kept is not None and row.ratio is not None:
        least = NEEDLES_KEPT if row.task in _NEEDLES else UUID_KEPT if held else None
        found.append(Bar(f"{where}: kept", row.kept, least, row.questions))
    return found


_WORDS = {
    "full": "full text",
    "composed": "memories",
    "joint": "one joint memory",
    "gist": "memories",
    _CODES: "memories with codes verbatim",
    "closed": "no document",
    BEFORE: "full text before gist training",
    _PLAIN: "full text, plain decoding",
}


def _shown(method: str, ratio: int | None) -> str:
    return _WORDS[method] if ratio is None else f"{_WORDS[method]}, ratio {ratio}"


def bars_table(measured: Measured) -> Table:
    """The bars as a rich table; its caption says what the model was held against."""
    out = Table("what", "measured (95 %)", "bar", "met", "questions", caption=base_note(measured.facts["base"]))
    for bar in measured.bars:
        least = "" if bar.bar is None else f"{bar.bar:.2f}"
        met = {None: "", True: "yes", False: "no"}[bar.met]
        value = "nothing to keep" if np.isnan(bar.value[0]) else interval(bar.value)
        out.add_row(bar.what, value, least, met, str(bar.questions))
    return out


def base_note(base: str | None) -> str:
    """Say what retention is against."""
    if base is None:
        return "Kept is of the full-text score of the same weights: no model before gist training was given."
    return "Kept is of the better full-text score of these weights and the model before gist training."


def _known(value: Any) -> Any:
    """Plain JSON values: None for what has no value, lists for tuples."""
    if isinstance(value, Mapping):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        found = [_known(one) for one in value]
        return None if found and isinstance(value, tuple) and found[0] is None else found
    return None if isinstance(value, float) and np.isnan(value) else value
