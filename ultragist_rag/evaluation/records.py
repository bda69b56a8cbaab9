"""Read what a run of the evaluation wrote: `run.json` and `records.jsonl`.

Is        `Run`, `TaskFacts` and `Record`: the files of a run folder, checked once, as frozen records.
Flow      runner's files -> [records] -> summary, tables, plots, page.
Change    what a line or the facts of a run can say.
Not here  what is computed from them -> summary.py.
Holds     a last line that was not written whole is left out; any other damaged line is an error with its number.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultragist_rag.errors import InputError

__all__ = ["PACKED", "RECORDS", "RUN", "Condition", "Record", "Run", "TaskFacts", "pack_run", "read_run"]

RECORDS, RUN, PACKED = "records.jsonl", "run.json", "records.jsonl.xz"
"""Files of a run; the last one instead of the first where a run is kept for its numbers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How a context was shown.

    Attributes:
        method: `full`, `closed`, `gist`, `bm25` and so on.
        ratio: Raw tokens per gist; None for methods without, and under a budget.
        budget: Bytes of keys and values that the context could take; None without budget.
    """

    method: str
    ratio: int | None = None
    budget: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether gist memories are what is shown."""
        return self.method in ("gist", "joint") or self.method.startswith("gist+")

    @property
    def order(self) -> tuple[int, str, int, int]:
        """Where it stands in tables: full text, no text, gist memories, then the rest by name."""
        ends = {"full": 0, "closed": 1, "gist": 2, "joint": 3}
        place = ends.get(self.method, 4 if self.is_ours else 5)
        return place, self.method, self.budget or 0, self.ratio or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sample by one method.

    Attributes:
        task: `suite/name`.
        id: Name of the sample in its task.
        group: Condition of the sample that is reported by itself; empty if there is but one.
        condition: How the context was shown.
        n_tokens: Raw tokens of the context.
        slots: Cache slots that it took.
        n_bytes: Bytes of keys and values in these slots.
        prediction: What the model said.
        scores: Metric by name; empty if the sample was skipped.
        seconds: `compress`, `first_token` and `total`, those that were measured.
        skipped: Why there is no score; empty if there is one.
    """

    task: str
    id: str
    group: str
    condition: Condition
    n_tokens: float
    slots: float
    n_bytes: float
    prediction: str
    scores: Mapping[str, float]
    seconds: Mapping[str, float]
    skipped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a run says of a task.

    Attributes:
        name: `suite/name`.
        suite: Its suite.
        metric: The metric of tables and plots; empty if it is the first that a record has.
        kind: `generate`, `choose`, `perplexity` or `extra`.
        chance: Score of guessing.
        lm_needed: Whether models of a few million parameters are too small to do it at all.
        source: Where the data are published; empty for samples that come with the package.
    """

    name: str
    suite: str
    metric: str
    kind: str
    chance: float
    lm_needed: bool
    source: str

    @property
    def lower_is_better(self) -> bool:
        """Whether less is better: true of perplexity alone."""
        return self.kind == "perplexity"

    def is_guessed(self, score: tuple[float, float, float]) -> bool:
        """Tell whether guessing explains a score, by the lower end of its interval."""
        return self.chance > 0 and score[1] <= self.chance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One run folder; what is computed of it is kept for as long as it is used.

    Attributes:
        folder: Where it lies.
        facts: What `run.json` holds.
        tasks: Facts by task, in the order of the run.
        records: The lines, in order; of two with the same sample and condition the later one.
    """

    folder: Path
    facts: Mapping[str, Any]
    tasks: Mapping[str, TaskFacts]
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def left_out(self) -> list[str]:
        """Why tasks are missing, one line each."""
        lines = self.facts.get("left_out")
        return [str(line) for line in lines] if isinstance(lines, list) else []


def read_run(folder: str | Path) -> Run:
    """Read a run.

    Args:
        folder: What the runner wrote.

    Returns:
        Its facts and records.

    Raises:
        InputError: If files are missing, or a line is damaged that is not the last one of a run that was stopped.
    """
    folder = Path(folder)
    facts = _read_facts(folder / RUN)
    kept = {}
    for record in _read_records(folder / RECORDS):
        kept[record.task, record.group, record.id, record.condition] = record
    records = tuple(kept.values())
    told = facts.get("tasks")
    told = told if isinstance(told, dict) else {}
    names = dict.fromkeys([*told, *(record.task for record in records)])
    tasks = {name: _task(name, told.get(name), records) for name in names}
    return Run(folder=folder, facts=facts, tasks=tasks, records=records)


def pack_run(folder: str | Path, into: str | Path) -> None:
    """Keep the numbers of a run: its facts, and its lines without what the model said, compressed.

    Args:
        folder: What the runner wrote, or what was packed before.
        into: Folder to write; may be the same.

    Raises:
        InputError: If files are missing or damaged.
    """
    folder, into = Path(folder), Path(into)
    read_run(folder)
    if folder.resolve() == into.resolve() or not (folder / RECORDS).is_file():
        return
    lines = [json.loads(line) for line in (folder / RECORDS).read_bytes().splitlines()]
    kept = [{name: value for name, value in line.items() if name != "prediction"} for line in lines]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
    into.mkdir(parents=True, exist_ok=True)
    (into / PACKED).write_bytes(lzma.compress(text.encode("utf-8"), preset=9))
    (into / RUN).write_bytes((folder / RUN).read_bytes())


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} is no folder of a run: it holds no {path.name}. Name what `eval` wrote.")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Run the evaluation again.") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object. Run the evaluation again.")
    return facts


def _read_records(path: Path) -> list[Record]:
    packed = path.with_name(PACKED)
    if not path.is_file() and not packed.is_file():
        raise InputError(f"{path.parent} holds no {path.name}: nothing was measured. Run the evaluation again.")
    try:
        data = path.read_bytes() if path.is_file() else lzma.decompress(packed.read_bytes())
    except lzma.LZMAError as error:
        raise InputError(f"{packed} is damaged: {error}. Pack the run again.") from error
    lines = data.split(b"\n")
    last = max((place for place, line in enumerate(lines) if line.strip()), default=-1)
    records = []
    for place, line in enumerate(lines[: last + 1]):
        try:
            value = json.loads(line.decode("utf-8"))
        except ValueError as error:  # bytes that are no UTF-8 are one, too
            if place == last:
                break
            raise InputError(f"{path}, line {place + 1} is damaged: {error}. Delete the line, and go on.") from error
        try:
            records.append(_record(value))
        except (KeyError, TypeError, ValueError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}, line {place + 1} is damaged: {why}. Delete the line, and go on.") from error
    return records


def _record(value: Any) -> Record:
    if not isinstance(value, dict):
        raise TypeError("it holds no JSON object")
    skipped = str(value.get("skipped") or "")
    scores = {} if skipped else _numbers(value["scores"])
    if not skipped and not scores:
        raise ValueError("it has no score")
    return Record(
        task=str(value["task"]),
        id=str(value["id"]),
        group=str(value.get("group") or ""),
        condition=Condition(
            method=str(value["method"]), ratio=_whole(value.get("ratio")), budget=_whole(value.get("budget"))
        ),
        n_tokens=_number(value.get("tokens")),
        slots=_number(value.get("slots")),
        n_bytes=_number(value.get("bytes")),
        prediction=str(value.get("prediction") or ""),
        scores=scores,
        seconds=_numbers(value.get("seconds") or {}),
        skipped=skipped,
    )


def _whole(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.80} holds no numbers by name")
    return {str(name): _number(number) for name, number in value.items() if number is not None}


def _task(name: str, told: Any, records: tuple[Record, ...]) -> TaskFacts:
    """Facts of a task; where the run was stopped before it wrote them, what the records show."""
    told = told if isinstance(told, dict) else {}
    first = next((record.scores for record in records if record.task == name and record.scores), {})
    kind = str(told.get("kind") or "")
    metric = str(told.get("metric") or "")
    if "nll" in first and kind in ("", "extra", "perplexity") and metric in ("", "ppl"):
        kind, metric = "perplexity", "ppl"
    return TaskFacts(
        name=name,
        suite=str(told.get("suite") or name.partition("/")[0]),
        metric=metric or next(iter(first), ""),
        kind=kind or "generate",
        chance=_number(told.get("chance") or 0.0),
        lm_needed=bool(told.get("lm_needed")),
        source=str(told.get("source") or ""),
    )
