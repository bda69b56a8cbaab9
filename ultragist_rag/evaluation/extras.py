"""What suites measure by other means than samples of a task: lm-eval's tasks, perplexity by position, the probe.

Is        `Extra`: a name and a function that gives lines; and how names of suites become tasks and extras.
Flow      task, weak, failures -> [extras] -> settings, runner.
Change    add one: a function of engine, settings, ratios here, and its name in `EXTRAS`.
Not here  what they measure -> weak.py, failures/.
Holds     a name of a suite, task or extra that is unknown is an error, never left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.task import Task, registered_tasks, suite_tasks

__all__ = ["EXTRAS", "Extra", "Wanted", "resolve"]

Row = dict[str, Any]

_LM_EVAL = "lm-eval"
_WEAK = {
    "everyday": ("", 0.25),
    "gsm8k": ("GSM8K, MIT", 0.0),
    "bbh": ("BIG-Bench Hard, MIT", 0.0),
    "piqa": ("PIQA, AFL-3.0", 0.5),
}
"""Tasks of lm-eval whose files come with the package: where their data are published, and the score of guessing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an extra is asked for.

    Attributes:
        ratios: Raw tokens per gist.
        limit: Samples at most; None for all.
        seed: Of all draws.
        data: Folder of data sets, or None.
    """

    ratios: Sequence[int]
    limit: int | None
    seed: int
    data: str | None


@dataclass(frozen=True, slots=True)
class Extra:
    """One measurement.

    Attributes:
        name: `suite/name`; its lines have this task.
        rows: Gives the lines.
        needs_data: Whether it reads a data folder.
        source: Where its data are published; empty for our own.
        chance: Score of guessing.
    """

    name: str
    rows: Callable[[UltraGist, Wanted], Iterable[Row]]
    needs_data: bool = False
    source: str = ""
    chance: float = 0.0

    @property
    def suite(self) -> str:
        """The suite it belongs to."""
        return self.name.partition("/")[0]


def resolve(names: Iterable[str]) -> tuple[list[Task], list[Extra]]:
    """Find tasks and extras by the names of suites.

    Args:
        names: Suites, single tasks or extras, `all`, or `lm-eval/NAME` for a task of lm-eval.

    Returns:
        Tasks and extras, in order and each once.

    Raises:
        InputError: If a name is unknown.
    """
    tasks = registered_tasks()
    suites = list(dict.fromkeys([*(task.suite for task in tasks.values()), *(extra.suite for extra in EXTRAS)]))
    extras: dict[str, Extra] = {}
    known = []
    for name in names:
        found = {extra.name: extra for extra in EXTRAS if name in ("all", extra.name, extra.suite)}
        if name.startswith(f"{_LM_EVAL}/"):
            found[name] = Extra(name, partial(_lm_eval, name.removeprefix(f"{_LM_EVAL}/"), name), source="lm-eval")
        is_task = any(name in ("all", task.name, task.suite) for task in tasks.values())
        if not found and not is_task:
            raise InputError(
                f"suite {name!r} is unknown. There are {', '.join(suites)}, all, {_LM_EVAL}/NAME, and the tasks that "
                "--list prints."
            )
        extras.update(found)
        known += [name] if is_task else []
    return suite_tasks(known), list(extras.values())


def _lm_eval(task: str, name: str, engine: UltraGist, wanted: Wanted) -> Iterable[Row]:
    from ultragist_rag.evaluation.weak import HUB_TASKS, run_lm_eval

    settings: dict[str, Any] = {"ratios": wanted.ratios, "limit": wanted.limit, "seed": wanted.seed}
    rows = run_lm_eval(engine, [task], data=wanted.data, num_fewshot=HUB_TASKS.get(task), **settings)
    several = len({row["task"] for row in rows}) > 1  # a group of tasks: their samples have the same ids
    parts = ({**row, "group": row["task"].partition("/")[2]} if several else row for row in rows)
    return [
        _line({**row, "task": name, "id": f"{row['group']}/{row['id']}" if several else row["id"]}) for row in parts
    ]


def _line(row: Row) -> Row:
    """Keep the metrics of which more is better: of the others, a share of full text would mean the opposite."""
    less = row.pop("less_is_better")
    scores = {key: value for key, value in row["scores"].items() if key.partition(",")[0] not in less}
    if scores:
        return {**row, "scores": scores}
    return {**row, "scores": {}, "skipped": "less is better by all metrics of this task: use lm-eval's own command."}


def _position(engine: UltraGist, wanted: Wanted) -> Iterable[Row]:
    from ultragist_rag.evaluation.failures.measure import measure_position

    return measure_position(engine, ratios=wanted.ratios, limit=wanted.limit, seed=wanted.seed)


def _probe(engine: UltraGist, wanted: Wanted) -> Iterable[Row]:
    from ultragist_rag.evaluation.failures.measure import measure_probe

    return measure_probe(engine, ratios=wanted.ratios, limit=wanted.limit, seed=wanted.seed)


EXTRAS = (
    Extra("failures/position", _position),
    Extra("failures/probe", _probe),
    *(
        Extra(f"weak/{one}", partial(_lm_eval, f"ultragist_{one}", f"weak/{one}"), bool(source), source, chance)
        for one, (source, chance) in _WEAK.items()
    ),
)
