"""What an evaluation task is: samples with a context that can be compressed, and a score for each prediction.

Is        two frozen records, `Sample` and `Task`, and the registry of tasks by name.
Flow      data -> [task] -> tasks, methods, runner.
Paper     arXiv 2412.17483, table 8: the kinds of tasks, and their metrics.
Change    what a sample can say, how a prediction can be asked for.
Not here  the tasks themselves -> tasks/; how a context is shown to the model -> methods.py.
Holds     all methods get the same samples; what is registered is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import Source

__all__ = ["Kind", "Sample", "Scores", "Task", "register_task", "registered_tasks", "suite_tasks"]

Kind = Literal["generate", "choose", "perplexity"]
"""How the model is asked: for a text, for the likeliest of some choices, or for the probability of a text."""

Scores = dict[str, float]
"""Metric by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One thing to ask.

    Attributes:
        id: Name of the sample, unique within its task, the same in every run.
        documents: The context, in reading order: what a method may compress, cut or leave out.
        tail: What stands behind the context as it is, the question for example.
        head: What stands in front of the context as it is, an instruction for example.
        answers: What would be right, for the score.
        gold: Places in `documents` of those that hold the answer; empty if unknown.
        choices: Texts to choose from (kind `choose`), or the one text whose probability counts (`perplexity`).
        group: Condition that is reported by itself; empty if there is but one.
        notes: What the score needs besides.
    """

    id: str
    documents: tuple[str, ...]
    tail: str
    head: str = ""
    answers: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set, how it is asked, and how it is scored.

    Attributes:
        name: `suite/name`.
        load: Makes the samples from the data found.
        score: Metrics of one prediction. For `choose` the prediction is the text of the choice; `perplexity` is
            scored by the runner (`nll` and `tokens`), and this is not called.
        metric: The one that tables and plots show, higher is better; `perplexity` tasks have `ppl`.
        kind: How the model is asked.
        n_new: Tokens of an answer at most.
        stop: Texts that end an answer.
        separator: What stands between documents.
        files: Names of files to look for in a data folder, by role (`test`, `train`), the first found is taken,
            packed or not; empty for samples of our own making that come with the package.
        source: Where the data are published, and their licence in short; empty for our own.
        chance: Score of guessing.
        lm_needed: Whether models of a few million parameters are too small to do it at all.
    """

    name: str
    load: Callable[[Source], Iterable[Sample]]
    score: Callable[[Sample, str], Scores]
    metric: str
    kind: Kind = "generate"
    n_new: int = 32
    stop: tuple[str, ...] = ("\n",)
    separator: str = "\n\n"
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""
    chance: float = 0.0
    lm_needed: bool = False

    @property
    def suite(self) -> str:
        """The suite it belongs to."""
        return self.name.partition("/")[0]

    @property
    def lower_is_better(self) -> bool:
        """Whether less is better: true of perplexity alone."""
        return self.kind == "perplexity"


_OWN: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Make a task of one's own known to suites and the command line of this process.

    Args:
        task: The task.

    Raises:
        InputError: If the name is taken, or has no suite.
    """
    if "/" not in task.name.strip("/"):
        raise InputError(f"the task is called {task.name!r}, but must be called suite/name.")
    if task.name in registered_tasks():
        raise InputError(f"there is a task {task.name!r} already: give the new one another name.")
    _OWN[task.name] = task


def registered_tasks() -> dict[str, Task]:
    """Return all tasks by name, those that come with the package first."""
    from ultragist_rag.evaluation.tasks import TASKS

    return {**{task.name: task for task in TASKS}, **_OWN}


def suite_tasks(names: Iterable[str]) -> list[Task]:
    """Return the tasks of suites, or single ones, in order and each once.

    Args:
        names: Names of suites (`rag`), of tasks (`rag/invented`), or `all`.

    Returns:
        The tasks.

    Raises:
        InputError: If a name is unknown.
    """
    tasks = registered_tasks()
    suites = dict.fromkeys(task.suite for task in tasks.values())
    chosen: dict[str, Task] = {}
    for name in names:
        found = {key: task for key, task in tasks.items() if name in ("all", key, task.suite)}
        if not found:
            raise InputError(
                f"suite {name!r} is unknown. There are {', '.join(suites)}, all, and single tasks of these."
            )
        chosen.update(found)
    return list(chosen.values())
