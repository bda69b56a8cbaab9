"""Run suites on a checkpoint: every sample by every method at every ratio, one JSON line each; a stopped run goes on.

Is        the loop, the lines it writes, and what it writes about itself.
Flow      settings, task, fitting, methods, asking, peers -> [runner] -> summary, cli_eval.
Change    what a line says, in which order things are measured.
Not here  tables, plots and pages -> report; what needs more than predictions -> extras.py.
Holds     equal settings give equal lines, times aside; a line is written whole, and never twice.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.evaluation import peers
from ultragist_rag.evaluation.asking import ask, now
from ultragist_rag.evaluation.data import MissingDataError
from ultragist_rag.evaluation.environment import describe
from ultragist_rag.evaluation.extras import Extra, Wanted, resolve
from ultragist_rag.evaluation.fitting import bytes_per_slot, context_of, fit, source_of
from ultragist_rag.evaluation.methods import Context, has_ratio, is_prepared, show
from ultragist_rag.evaluation.metrics import spread
from ultragist_rag.evaluation.records import RECORDS, RUN
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import Sample, Task

__all__ = ["run_eval"]

_HEAD = ("task", "id", "group", "method", "ratio", "budget")
"""What every line begins with."""

Record = dict[str, Any]
Key = tuple[str, str, str, str, int | None]


def run_eval(
    engine: UltraGist, settings: EvalSettings, folder: Path, *, model: str = "", command: str | None = None
) -> Path:
    """Measure a model and write `records.jsonl` and `run.json`; what is there already is kept.

    Args:
        engine: The model; it needs a tokenizer.
        settings: What is measured.
        folder: Where the lines go. A run that was stopped is taken up again by the same settings.
        model: Name of the model, as it was loaded; peers load it by this name.
        command: What to write as the command; default this process's own.

    Returns:
        The folder.

    Raises:
        InputError: If the folder holds a run of other settings or another model, or no data were found at all.
    """
    if engine.tokenizer is None:
        raise InputError("the engine has no tokenizer: load it from a folder that has one.")
    if any(peers.is_peer(method) for method in settings.methods):
        peers.find_peers_python()  # before anything else is measured
    run = _Run(engine, settings, folder, model or str(engine.model.config._name_or_path))
    run.open(command or shlex.join(["ultragist-rag", *sys.argv[1:]]))
    tasks, extras = resolve(settings.suites)
    run.note_missing([one.name for one in tasks if one.files] + [one.name for one in extras if one.needs_data])
    for task in tasks:
        run.measure(task)
    run.ask_peers()
    for extra in extras:
        run.measure_extra(extra)
    run.close()
    return folder


class _Run:
    """One run: what is measured already, what is written about it."""

    def __init__(self, engine: UltraGist, settings: EvalSettings, folder: Path, model: str) -> None:
        self._engine, self._settings, self._folder, self._model = engine, settings, folder, model
        self._done: set[Key] = set()
        self._foreign: list[tuple[Task, Sample, str, int | None]] = []
        self._tasks: dict[str, dict[str, Any]] = {}
        self._left_out: list[str] = []
        self._missing: set[str] = set()
        self._about: dict[str, Any] = {}
        self._slot_bytes = bytes_per_slot(engine)

    def open(self, command: str) -> None:
        """Begin, or go on with what is in the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        told = describe(self._engine)
        fixed = {
            "fingerprint": self._engine.fingerprint,
            "dtype": told["dtype"],
            "gist": json.loads(json.dumps(self._engine.config.to_dict())),
            "settings": _plain(self._settings),
        }
        path = self._folder / RUN
        if path.is_file() and (self._folder / RECORDS).is_file():  # one that measured nothing is free
            before = json.loads(path.read_text("utf-8"))
            for name, value in fixed.items():
                if before.get(name, value) != value:
                    raise InputError(
                        f"{self._folder} holds a run of {_other(name, before[name], value)}: name another folder."
                    )
            self._tasks = before.get("tasks", {})
        self._about = {
            "model": self._model,
            **fixed,
            "command": command,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **told,
            "bytes_per_slot": self._slot_bytes,
        }
        self._write_about()
        self._done = set(map(_key, _whole_lines(self._folder / RECORDS)))

    def close(self) -> None:
        """Say what was measured and what was not."""
        self._write_about()
        if not self._tasks or not (self._folder / RECORDS).is_file():
            raise InputError("nothing was measured: " + " ".join(self._left_out))

    def note_missing(self, need_data: Sequence[str]) -> None:
        """Leave out all for which nobody named data, in one line."""
        data = self._settings.data
        self._missing = {name for name in need_data if "" not in data and name not in data}
        if self._missing:
            names = ", ".join(name for name in need_data if name in self._missing)
            self._leave_out(f"Without data, for which --data names a folder, these are left out: {names}.")

    def measure(self, task: Task) -> None:
        """Run one task, or note why it is left out."""
        if task.name in self._missing:
            return
        try:
            source = source_of(self._engine, self._settings, task)
            samples = [
                fit(self._engine, self._settings, task, one)
                for one in spread(list(task.load(source)), self._settings.limit)
            ]
        except MissingDataError as error:
            self._leave_out(str(error))
            return
        if not samples:
            self._leave_out(f"{task.name} is left out: its data hold no samples.")
            return
        self._note(task, len(samples), kind=task.kind, metric=task.metric, lm_needed=task.lm_needed)
        cells = self._cells()
        own = [(method, ratio) for method, ratio in cells if not peers.is_peer(method)]
        with tqdm(total=len(samples) * len(own), desc=task.name, unit="prompt") as bar:
            for sample in samples:
                self._append(
                    self._measure_one(task, sample, method, ratio) for method, ratio in self._open(task, sample, own)
                )
                bar.update(len(own))
        foreign = [(method, ratio) for method, ratio in cells if peers.is_peer(method)]
        self._foreign += [(task, one, *cell) for one in samples for cell in self._open(task, one, foreign)]

    def ask_peers(self) -> None:
        """Send what is asked of other packages to their environment, all tasks together."""
        if not self._foreign:
            return
        asked = {(task.name, sample.id): (task, sample) for task, sample, *_ in self._foreign}
        requests = []
        for task, sample, method, ratio in self._foreign:
            try:
                requests.append(self._request(task, sample, method, ratio))
            except InputError as error:
                head = {**_head(task, sample, method, ratio), "budget": self._settings.budget}
                self._append([{**head, "skipped": str(error)}])
        model = self._engine.model
        where = {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)}
        got = peers.run_peers(peers.model_folder(self._model), requests, self._folder / "peers.jsonl", **where)
        self._append(self._of_peer(*asked[one["task"], one["id"]], one) for one in got)

    def measure_extra(self, extra: Extra) -> None:
        """Run what is measured by other means, unless its lines are all there."""
        if extra.name in self._missing or self._tasks.get(extra.name, {}).get("kind") == "extra":
            return
        settings = self._settings
        data = settings.data.get(extra.name, settings.data.get(""))
        wanted = Wanted(ratios=settings.ratios, limit=settings.limit, seed=settings.seed, data=data)
        try:
            rows = list(extra.rows(self._engine, wanted))
        except InputError as error:  # no data, no package, no such task
            self._leave_out(f"{extra.name} is left out: {error}")
            return
        self._append({"budget": None, **row} for row in rows if _key(row) not in self._done)
        self._note(extra, len({row["id"] for row in rows}), kind="extra")

    def _cells(self) -> list[tuple[str, int | None]]:
        ratios: Sequence[int | None] = self._settings.ratios if self._settings.budget is None else (None,)
        return [
            (method, ratio) for method in self._settings.methods for ratio in (ratios if has_ratio(method) else (None,))
        ]

    def _open(
        self, task: Task, sample: Sample, cells: Sequence[tuple[str, int | None]]
    ) -> list[tuple[str, int | None]]:
        return [cell for cell in cells if (task.name, sample.group, sample.id, *cell) not in self._done]

    def _measure_one(self, task: Task, sample: Sample, method: str, ratio: int | None) -> Record:
        budget = self._settings.budget if has_ratio(method) else None
        record: Record = {**_head(task, sample, method, ratio), "budget": budget}
        try:
            context = context_of(self._engine, self._settings, task, sample, method, ratio)
            started = now(self._engine)
            shown = show(method, context)
            compress = now(self._engine) - started
            asked = ask(self._engine, task, sample, shown.pieces, self._settings.source_bias)
        except (ContextOverflowError, InputError) as error:
            return {**record, "skipped": str(error)}
        scores = asked.scores or task.score(sample, asked.prediction)
        first = asked.first_token if is_prepared(method) else compress + asked.first_token
        seconds = {"compress": compress, "first_token": first, "total": compress + asked.total}
        return self._record(record, context, shown.slots, asked.prediction, scores, seconds)

    def _record(
        self, head: Record, context: Context, slots: int, prediction: str, scores: dict[str, float], seconds: Any
    ) -> Record:
        sizes = {"tokens": context.n_tokens, "slots": slots, "bytes": slots * self._slot_bytes}
        return {**head, **sizes, "prediction": prediction, "scores": scores, "seconds": seconds}

    def _request(self, task: Task, sample: Sample, method: str, ratio: int | None) -> Record:
        """What the peers' environment is told."""
        context = context_of(self._engine, self._settings, task, sample, method, ratio)
        return {
            **_head(task, sample, method, ratio),
            "budget": self._settings.budget,
            "slots": context.slots,
            "kind": task.kind,
            "head": sample.head,
            "context": context.text,
            "documents": list(sample.documents),
            "tail": sample.tail,
            "choices": list(sample.choices),
            "n_new": task.n_new,
            "stop": list(task.stop),
            "lead": True,
        }

    def _of_peer(self, task: Task, sample: Sample, got: Record) -> Record:
        """Score what a peer said, as everything else is scored."""
        head = {name: got[name] for name in _HEAD}
        if "skipped" in got:
            return {**head, "skipped": got["skipped"]}
        if task.kind == "perplexity":
            scores = {"nll": got["nll"], "tokens": float(got["n_tokens"])}
        else:
            scores = task.score(sample, got["prediction"])
        context = Context(engine=self._engine, sample=sample, separator=task.separator)
        return self._record(head, context, got["slots"], got["prediction"], scores, got["seconds"])

    def _note(self, one: Task | Extra, n_samples: int, *, kind: str, metric: str = "", lm_needed: bool = False) -> None:
        about = {"suite": one.suite, "metric": metric, "kind": kind, "chance": one.chance, "lm_needed": lm_needed}
        self._tasks[one.name] = {**about, "source": one.source, "n_samples": n_samples}
        self._write_about()

    def _leave_out(self, why: str) -> None:
        self._left_out.append(why)
        tqdm.write(why, file=sys.stderr)

    def _append(self, records: Iterable[Record]) -> None:
        with (self._folder / RECORDS).open("a", encoding="utf-8") as file:
            for record in records:
                if not all(math.isfinite(score) for score in record.get("scores", {}).values()):
                    head = {name: record[name] for name in _HEAD}
                    record = {**head, "skipped": f"no finite score: {record['scores']}"}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
                self._done.add(_key(record))

    def _write_about(self) -> None:
        about = {**self._about, "tasks": self._tasks, "left_out": self._left_out}
        new = self._folder / f"{RUN}.new"
        new.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(self._folder / RUN)


def _head(task: Task, sample: Sample, method: str, ratio: int | None) -> Record:
    return {"task": task.name, "id": sample.id, "group": sample.group, "method": method, "ratio": ratio}


def _key(record: Record) -> Key:
    return record["task"], record["group"], record["id"], record["method"], record["ratio"]


def _other(name: str, before: Any, now: Any) -> str:
    """Name what differs between two runs."""
    if isinstance(before, dict):
        changed = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return f"{name} with {changed} {before.get(changed)!r}, not {now.get(changed)!r}"
    return f"{name} {before!r:.40}, not {now!r:.40}"


def _plain(settings: EvalSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    if not settings.source_bias:  # so that runs from before there was one go on
        del plain["source_bias"]
    return plain


def _whole_lines(path: Path) -> list[Record]:
    """Read the lines of a run that was stopped; cut off a last one that was not written whole."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    try:
        return [json.loads(line) for line in data[:end].splitlines()]
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}. Take another folder, or mend it.") from error
