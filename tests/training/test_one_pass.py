"""All windows in one forward give the loss and the gradients of the loop, and the memories of `compress_ids`."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ContextOverflowError, TrainingError
from ultragist_rag.memory.compress import Verbatim, compress_ids
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.testing import tiny_model
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.objectives import independent_loss, joint_loss
from ultragist_rag.training.one_pass import Document, lay_out, run
from ultragist_rag.training.planned import plan, planned_loss
from ultragist_rag.training.setup import checkpoint_layers

_CONFIGS = {
    "step-expansion": GistConfig(window=8, ratio=4),
    "step-expansion, apart": GistConfig(window=8, ratio=4, attend_previous=False),
    "full-coverage": GistConfig(window=8, ratio=4, attention="full-coverage"),
    "segmentation": GistConfig(window=8, ratio=4, attention="segmentation"),
    "interleave": GistConfig(window=8, ratio=4, placement="interleave"),
    "interleave, full-coverage": GistConfig(window=8, ratio=4, placement="interleave", attention="full-coverage"),
    "sink": GistConfig(window=8, ratio=4, sink=2),
    "low rank": GistConfig(window=8, ratio=4, rank=2),
}
_LEAD = 1


def _attached(config: GistConfig, family: str = "llama") -> Attachment:
    attachment = attach(tiny_model(family), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return attachment


def _rows(seed: int = 0, n: int = 3) -> list[Row]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 60) for _ in range(rng.randint(low, high)))

    rows = []
    for number in range(n):
        documents = tuple(ids(3, 21) for _ in range(1 + number % 3))
        separators = (*(ids(1, 2) for _ in documents[1:]), ids(1, 2) if number != 1 else ())
        turns = ids(4, 9)
        exact = tuple((0, len(document) // 2) for document in documents)
        rows.append(Row(documents, separators, turns, (*(rng.choice((0.0, 0.5, 1.0)) for _ in turns[1:]), 1.0), exact))
    return rows


_STAGE = Stage(
    name="s",
    steps=1,
    tokens=100,
    kinds={"text": 1.0},
    ratios=(2, 3, 4, 8),
    windows=(6, 8),
    verbatim_share=0.5,
    raw_share=0.3,
)


def _gradients(attachment: Attachment, value: torch.Tensor) -> dict[str, torch.Tensor]:
    attachment.model.zero_grad(set_to_none=True)
    value.backward()
    return {n: p.grad.clone() for n, p in attachment.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["independent", "joint"])
@pytest.mark.parametrize("name", _CONFIGS)
def test_one_forward_has_loss_and_gradients_of_the_loop(name: str, mode: str) -> None:
    attachment = _attached(_CONFIGS[name])
    loop = independent_loss if mode == "independent" else joint_loss
    for seed in range(3):
        rows = _rows(seed)
        expected = loop(attachment, rows, _LEAD, _STAGE, random.Random(f"{seed}"))
        batch = plan(attachment.config, mode, rows, _LEAD, _STAGE, f"{seed}", n_positions=attachment.n_positions)
        found = planned_loss(attachment, batch, _STAGE)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.correct, expected.correct)
        wanted = _gradients(attachment, expected.value)
        for key, gradient in _gradients(attachment, found.value).items():
            expected_gradient = wanted.get(key, torch.zeros_like(gradient))  # none in the loop is zero here
            torch.testing.assert_close(
                gradient, expected_gradient, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_every_family_runs_in_one_forward(family: str) -> None:
    attachment = _attached(_CONFIGS["step-expansion"], family)
    expected = independent_loss(attachment, _rows(), _LEAD, _STAGE, random.Random("0"))
    batch = plan(attachment.config, "independent", _rows(), _LEAD, _STAGE, "0", n_positions=attachment.n_positions)
    torch.testing.assert_close(planned_loss(attachment, batch, _STAGE).value, expected.value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_layer_that_runs_again_attends_in_the_same_way(implementation: str) -> None:
    attachment = _attached(_CONFIGS["step-expansion"])
    attachment.model.set_attn_implementation(implementation)
    batch = plan(attachment.config, "independent", _rows(), _LEAD, _STAGE, "0", n_positions=attachment.n_positions)
    expected = _gradients(attachment, planned_loss(attachment, batch, _STAGE).value)
    checkpoint_layers(attachment.model.train())
    found = _gradients(attachment, planned_loss(attachment, batch, _STAGE).value)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-5, atol=1e-6)
    assert attachment.model.config._attn_implementation == implementation


def test_memories_are_those_of_compress_ids() -> None:
    attachment = _attached(_CONFIGS["step-expansion"])
    documents = [Document(tuple(range(3, 3 + n)), [4, 2], (1, n - 1)) for n in (5, 20, 11)]
    layout = lay_out(replace(attachment.config, sink=0), [documents[:2], documents[2:]], _LEAD, n_positions=99)
    with torch.no_grad():
        found = run(attachment, layout, with_slots=True).memories(layout, attachment.config)
        for document, memory in zip(documents, found, strict=True):
            flags = np.isin(np.arange(len(document.ids)), document.chosen)
            (expected,) = compress_ids(
                attachment,
                [torch.tensor(document.ids)],
                ratio=[[4, 2]],
                lead_token=_LEAD,
                verbatim=Verbatim("training", [flags]),
            )
            assert memory.segments == expected.segments
            for mine, theirs in zip((*memory.keys, *memory.values), (*expected.keys, *expected.values), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_teacher_that_agrees_adds_nothing_and_another_does() -> None:
    attachment = _attached(_CONFIGS["step-expansion"])
    rows = _rows()
    taught = _STAGE.model_copy(update={"distil": 1.0})
    everything = taught.model_copy(update={"raw_share": 1.0})
    plain, same = (
        planned_loss(
            attachment, plan(attachment.config, "independent", rows, _LEAD, stage, "0", n_positions=99), stage
        ).value
        for stage in (everything.model_copy(update={"distil": 0.0}), everything)
    )
    torch.testing.assert_close(plain, same, rtol=1e-5, atol=1e-5)
    plain, other = (
        planned_loss(
            attachment, plan(attachment.config, "independent", rows, _LEAD, stage, "0", n_positions=99), stage
        ).value
        for stage in (_STAGE, taught)
    )
    assert other > plain + 1e-3


def test_what_does_not_fit_is_refused() -> None:
    config = GistConfig(window=8, stride=4, ratio=4)
    with pytest.raises(TrainingError, match="stride 4 below window 8"):
        lay_out(config, [[Document((3, 4), [4])]], None, n_positions=99)
    with pytest.raises(ContextOverflowError, match="needs 12 positions"):
        lay_out(GistConfig(window=8, ratio=4), [[list(range(12))]], None, n_positions=8)
