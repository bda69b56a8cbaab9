"""How large the context of a sample may be: room for tasks that write their own, and cuts for those that are too long.

Is        token counts against the positions of the model and the settings.
Flow      settings, task, methods -> [fitting] -> runner.
Change    what is left out first, what a budget buys.
Holds     every method gets the same documents; none that holds the answer is left out.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.methods import Context, count_tokens, has_ratio, slots_at
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import Sample, Task

__all__ = ["bytes_per_slot", "context_of", "fit", "source_of"]

_SPARE = 16
"""Positions that are left free: lead token, and what joining texts may add."""

_MOST = 16_384
"""Tokens of a context unless more are asked for: what the study used."""


def bytes_per_slot(engine: UltraGist) -> int:
    """Bytes of the keys and values of one slot in all layers, in the number format of the model."""
    shape = engine.attachment
    return shape.n_layers * 2 * shape.n_kv_heads * shape.head_dim * int(engine.model.dtype.itemsize)


def source_of(engine: UltraGist, settings: EvalSettings, task: Task) -> Source:
    """Tell a task where its data are and how much room there is."""
    return Source(
        task=task.name,
        files=task.files,
        place=settings.data.get(task.name, settings.data.get("")) if task.files else None,
        room=settings.context or min(engine.max_positions // 2, _MOST),
        count=partial(count_tokens, engine),
        seed=settings.seed,
        window=engine.config.window,
    )


def fit(engine: UltraGist, settings: EvalSettings, task: Task, sample: Sample) -> Sample:
    """Leave out documents that do not hold the answer, the last first, until the full text fits."""
    around = sum(count_tokens(engine, text) for text in (sample.head, sample.tail, *sample.choices))
    most = engine.max_positions - around - task.n_new - _SPARE
    if settings.context is not None:
        most = min(most, settings.context)
    sizes = [count_tokens(engine, document + task.separator) for document in sample.documents]
    kept = list(range(len(sizes)))
    for place in reversed(range(len(sizes))):
        if sum(sizes[one] for one in kept) <= most:
            break
        if sample.gold and place not in sample.gold:
            kept.remove(place)
    if len(kept) == len(sizes):
        return sample
    gold = tuple(kept.index(place) for place in sample.gold)
    return replace(sample, documents=tuple(sample.documents[place] for place in kept), gold=gold)


def context_of(
    engine: UltraGist, settings: EvalSettings, task: Task, sample: Sample, method: str, ratio: int | None
) -> Context:
    """Say how small a context is to become: as many slots as gists take at this ratio, or what the budget buys.

    Under a budget gists have the lowest ratio that fits, of those that the config names, else the next higher one.

    Raises:
        InputError: If the budget is too small at any ratio.
    """
    context = Context(engine=engine, sample=sample, separator=task.separator, ratio=ratio)
    if not has_ratio(method):
        return context
    if settings.budget is None:
        return replace(context, slots=slots_at(context))
    slots = settings.budget // bytes_per_slot(engine)
    trained = sorted(one for one in engine.config.choices if one)
    for fitting in [*trained, *range(trained[-1] + 1, engine.config.window + 1)]:
        if slots_at(replace(context, ratio=fitting)) <= slots:
            return replace(context, ratio=fitting, slots=slots)
    raise InputError(f"a budget of {settings.budget} bytes is {slots} slots: too few at any ratio. Give more.")
