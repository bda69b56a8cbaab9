"""Score many samples of a task by one method, batch by batch.

Is        the prompts of `asking`, decoded side by side.
Flow      task, fitting, methods, asking -> [batched] -> bars.
Change    how many prompts are decoded together.
Not here  one sample at a time, with times and slots -> runner.py.
Holds     a sample gets the scores in a batch that it gets alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.asking import ask, decoding_of, prompt_of
from ultragist_rag.evaluation.fitting import context_of, fit, source_of
from ultragist_rag.evaluation.methods import show
from ultragist_rag.evaluation.metrics import spread
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.memory.generate import answer
from ultragist_rag.memory.pieces import Piece

__all__ = ["fitted_samples", "score_samples"]

_BATCH = 16


def fitted_samples(engine: UltraGist, settings: EvalSettings, task: Task) -> list[Sample]:
    """Load the samples of a task, at most `settings.limit`, cut to what the model can read.

    Args:
        engine: The model.
        settings: Data, room, seed and limit.
        task: The task.

    Returns:
        At least one sample.

    Raises:
        InputError: If there is none; of the kind `MissingDataError` if its files are missing.
    """
    samples = spread(list(task.load(source_of(engine, settings, task))), settings.limit)
    if not samples:
        raise InputError(f"the data of {task.name} hold no samples: give other --data.")
    return [fit(engine, settings, task, sample) for sample in samples]


def score_samples(
    engine: UltraGist, settings: EvalSettings, task: Task, samples: Sequence[Sample], cell: tuple[str, int | None]
) -> list[Scores]:
    """Score samples by one method.

    Args:
        engine: The model.
        settings: As for `fitted_samples`.
        task: Says how they are asked and scored.
        samples: What is asked.
        cell: Method, and raw tokens per gist for methods that have a ratio.

    Returns:
        Scores of each sample.

    Raises:
        ContextOverflowError: If a prompt and its answer need more positions than there are.
    """
    method, ratio = cell
    found: list[Scores] = []
    with tqdm(total=len(samples), desc=f"{task.name} {method} {ratio or ''}".rstrip(), unit="sample") as bar:
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            shown = [show(method, context_of(engine, settings, task, one, method, ratio)).pieces for one in part]
            found += _scores(engine, task, part, shown, settings.source_bias)
            bar.update(len(part))
    return found


def _scores(
    engine: UltraGist, task: Task, samples: Sequence[Sample], shown: Sequence[Sequence[Piece]], source_bias: float
) -> list[Scores]:
    if task.kind == "perplexity":
        return [ask(engine, task, *both).scores for both in zip(samples, shown, strict=True)]
    prompts = [prompt_of(*both) for both in zip(samples, shown, strict=True)]
    answers = answer(engine, prompts, decoding_of(task, source_bias))
    return [task.score(sample, got.text.strip()) for sample, (got,) in zip(samples, answers, strict=True)]
