"""Batches that workers draw are those that the training process draws; so are the losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.drawing import Batch
from ultragist_rag.training.loop import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on one core
]

KEYS = [
    pytest.param({"modes": {"independent": 1.0, "joint": 1.0, "full": 1.0}}, id="planned"),
    pytest.param({"modes": {"independent": 1.0}, "token_importance": 1.0}, id="weighed in the process"),
    pytest.param({"modes": {"stream": 1.0}}, id="streams"),
]


def tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    if batch.planned is not None:
        batch.planned.map(lambda part: found.append(part) or part)
    return found


def same(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert replace(mine, planned=None) == replace(theirs, planned=None)
        ours, others = tensors(mine), tensors(theirs)
        assert len(ours) == len(others)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, others, strict=True))
    return True


def losses(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("keys", KEYS)
def test_workers_draw_what_the_process_itself_draws(tiny_run: TrainConfig, keys: dict[str, Any]) -> None:
    stage = tiny_run.stages[1].model_copy(update={"steps": 10, **keys})
    config = tiny_run.model_copy(update={"stages": (tiny_run.stages[0], stage), "accumulate": 2})
    alone = list(Trainer(config).drawn.batches(1, 12))
    assert len(alone) == 2 * 11
    by_workers = Trainer(config.model_copy(update={"workers": 2})).drawn.batches(1, 12)
    assert same(list(by_workers), alone)


def test_a_run_with_workers_has_the_losses_of_one_without(tiny_run: TrainConfig) -> None:
    ends = []
    for workers in (0, 2):
        config = tiny_run.model_copy(update={"workers": workers, "output": tiny_run.output / str(workers)})
        Trainer(config).run(stop_after=3)
        Trainer(config.model_copy(update={"workers": 2 - workers})).run()  # a resumed run may have others
        ends.append(losses(config))
    assert len(ends[0]) == tiny_run.n_steps
    assert ends[0] == ends[1]


def test_rows_whose_memories_would_not_fit_are_drawn_again(tiny_run: TrainConfig) -> None:
    """Codes kept verbatim beside gists of ratio 1 make a memory about twice as long as its text."""
    stage = tiny_run.stages[1].model_copy(
        update={
            "steps": 8,
            "tokens": 2000,
            "kinds": {"key-codes": 1.0},
            "modes": {"independent": 1.0},
            "documents": (1, 3),
            "ratios": (1,),
            "verbatim_share": 1.0,
            "raw_share": 0.0,
        }
    )
    model = {**tiny_run.model, "max_position_embeddings": 600}
    config = tiny_run.model_copy(update={"model": model, "stages": (stage,), "longest": 550})
    drawn = Trainer(config).drawn
    rows = [row for number in range(8) for row in drawn.rows_of(stage, number)]
    assert max(sum(len(document) for document in row.exact) for row in rows) > 50
    assert len(list(drawn.batches(0, 8))) == 8  # each was laid out, which checks its positions
    one_too_long = config.model_copy(update={"model": {**tiny_run.model, "max_position_embeddings": 64}})
    with pytest.raises(TrainingError, match="fits into the 64 positions"):
        Trainer(one_too_long).drawn.batch(stage, 0)
