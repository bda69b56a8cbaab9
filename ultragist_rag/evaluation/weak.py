"""Tasks of lm-eval as lines of a run: those that depend on their context weakly, and every other one.

Is        lm-eval's evaluation by `UltraGistLM`, one method and ratio after the other, and its samples as plain rows.
Flow      harness, lm_data -> [weak].
Paper     arXiv 2412.17483, tables 1, 6, 7 and 9: MMLU-Pro, BBH, GSM8K and HellaSwag with many examples in front.
Change    what a row says.
Not here  how a prompt is read -> harness.py; the task files -> lm_tasks/.
Holds     tasks with data of one's own touch no network; every method reads the same prompts; two runs give equal rows.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError
from ultragist_rag.evaluation.lm_data import LM_TASKS

__all__ = ["HUB_TASKS", "OWN_TASKS", "run_lm_eval"]

OWN_TASKS = ("ultragist_everyday", "ultragist_gsm8k", "ultragist_bbh", "ultragist_piqa")
"""Tasks of this package; all but the first need a data folder."""

HUB_TASKS = {"mmlu_pro": 12, "bbh_cot_fewshot": 3, "gsm8k": 16, "hellaswag": 32}
"""lm-eval's own tasks that the study reports, with the examples in front of a question; they are downloaded."""

Row = dict[str, Any]


def run_lm_eval(  # noqa: PLR0913 - settings of one run, by keyword
    engine: UltraGist,
    tasks: Sequence[str],
    *,
    methods: Sequence[str] = ("full", "gist"),
    ratios: Sequence[int] = (4,),
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    seed: int = 0,
    data: str | Path | None = None,
) -> list[Row]:
    """Run tasks of lm-eval on a model.

    Args:
        engine: The model.
        tasks: Names of tasks, groups or tags that lm-eval knows, those of this package, or paths of task files.
        methods: `full` and `gist`.
        ratios: Raw tokens per gist, for `gist`.
        limit: Samples of each task, the first ones; None for all.
        num_fewshot: Examples in front of a question, unless a task rules them out; None for the task's own number.
        include_path: Folder with further task files.
        seed: Of the examples that tasks draw.
        data: Folder with the data of this package's tasks.

    Returns:
        One row per sample, method and ratio: `task`, `id`, `group`, `method`, `ratio`, `slots` and `tokens` of the
        prompt in the cache (None if unknown), `prediction`, `scores`, and `less_is_better`, names of metrics.

    Raises:
        InputError: If a task or method is unknown, or lm-eval is not installed.
        MissingDataError: If the data of a task are not there, or cannot be downloaded.
    """
    rows: list[Row] = []
    with _quiet(), _seeded(seed):
        try:
            from ultragist_rag.evaluation.harness import UltraGistLM
        except ModuleNotFoundError as error:
            raise InputError(f"{error.name} is not installed. Run: pip install 'ultragist-rag[eval]'") from error
        loaded = _load(tasks, include_path, data)
        _set_examples(loaded["tasks"].values(), num_fewshot)
        for method in methods:
            for ratio in ratios if method == "gist" else (None,):
                model = UltraGistLM(engine, method=method, ratio=ratio, seed=seed)
                rows += _run(model, loaded, limit, seed)
    return rows


def _load(tasks: Sequence[str], include_path: str | Path | None, data: str | Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    settings: dict[str, Any] = {"metadata": {} if data is None else {"data": str(data)}}
    settings["include_path"] = [str(path) for path in (LM_TASKS, include_path) if path is not None]
    manager = TaskManager(include_defaults=False, **settings)
    if any(name not in manager.all_tasks and not Path(name).is_file() for name in tasks):
        manager = TaskManager(**settings)  # reads some thousand files
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            raise InputError(f"lm-eval knows no task {name!r}: `lm_eval ls tasks` lists its own, {OWN_TASKS} are ours.")
    try:
        return manager.load(list(tasks))
    except InputError:  # our own data: missing or damaged
        raise
    except (OSError, ValueError) as error:  # no network, no such data set
        raise MissingDataError(
            f"lm-eval/{','.join(tasks)} is left out: its data cannot be loaded ({error})."
        ) from error


def _set_examples(tasks: Any, num_fewshot: int | None) -> None:
    """Do what lm-eval's command does: a task that rules examples out keeps doing so."""
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)


def _run(model: Any, loaded: Any, limit: int | None, seed: int) -> list[Row]:
    from lm_eval.evaluator import evaluate

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=seed)
    results = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    return [row for name, task in loaded["tasks"].items() for row in _rows(name, task, results["samples"][name], model)]


def _rows(name: str, task: Any, samples: Sequence[Mapping[str, Any]], model: Any) -> list[Row]:
    """One row per document; where a task reads answers in several ways, scores are called metric,way as in lm-eval."""
    several = len({sample["filter"] for sample in samples}) > 1
    rows: dict[Any, Row] = {}
    for sample in samples:
        slots, tokens = model.sizes.get(sample["arguments"][0][0], (None, None))
        group = sample["doc"].get("task", "") if name in OWN_TASKS else ""
        head = {"task": f"lm-eval/{name}", "id": str(sample["doc_id"]), "group": group}
        shown = {"method": model.method, "ratio": model.ratio, "slots": slots, "tokens": tokens}
        said = {"prediction": _prediction(task.OUTPUT_TYPE, sample), "scores": {}}
        row = rows.setdefault(sample["doc_id"], {**head, **shown, **said})
        for metric in sample["metrics"]:
            key = f"{metric},{sample['filter']}" if several else metric
            row["scores"][key] = _score(task, metric, sample[metric])
    less = [metric for metric, more in task.higher_is_better().items() if not more]
    return [{**row, "less_is_better": less} for row in rows.values()]


def _score(task: Any, metric: str, value: Any) -> float:
    """A number as it is; what lm-eval puts together over a whole task, such as perplexity, for this sample alone."""
    return float(value if isinstance(value, Real | np.number) else task.aggregation()[metric]([value]))


def _prediction(kind: str, sample: Mapping[str, Any]) -> str:
    answers = [repeats[0] for repeats in sample["resps"]]
    if kind == "generate_until":
        return str(answers[0]).strip()
    if kind == "multiple_choice":
        contexts, choices = zip(*(args[:2] for args in sample["arguments"]), strict=True)
        # Further requests without a context, of some tasks, ask how likely a choice is by itself.
        asked = [place for place, context in enumerate(contexts) if context or not contexts[0]]
        best = max(asked, key=lambda place: answers[place][0])
        return choices[best].strip() if len(set(choices)) > 1 else str(best)
    if kind == "loglikelihood" and answers[0][1]:
        return str(sample["arguments"][0][1]).strip()
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what lm-eval tells about its defaults out of the way; errors are shown."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some tasks draw from the global generators: seed these for a while."""
    plain, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(array)
