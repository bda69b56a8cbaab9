"""Tokens that need the context weigh more, and the weights of a segment have mean one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ultragist_rag import GistConfig
from ultragist_rag.memory.forward import forward_ids
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.testing import tiny_model
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.importance import (
    HIGHEST,
    TEMPERATURE,
    importance,
    log_probs,
    stream_weights,
    weigh_rows,
)
from ultragist_rag.training.objectives import stream_loss

LEAD, IGNORED = 1, -100
ROWS = [
    Row(((5, 6, 7, 8), (9, 4, 9)), ((3,), (3, 3)), (20, 21, 22, 23, 24), (0.0, 1.0, 1.0, 0.0, 1.0)),
    Row(((31, 32),), ((),), (40, 41, 42), (1.0, 1.0, 1.0)),
]


@pytest.fixture
def attachment() -> Attachment:
    return attach(tiny_model(), GistConfig(window=8, ratio=4))


def _alone(attachment: Attachment, ids: list[int]) -> torch.Tensor:
    """Log-probabilities by Hugging Face, one sequence at a time."""
    with torch.no_grad():
        logits = attachment.model(torch.tensor([ids])).logits[0, :-1]
    return -functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def test_weights_are_a_softmax_of_mean_one_that_is_capped() -> None:
    even = torch.tensor([0.5, 1.0, -2.0, 0.0])
    expected = 4 * (even / TEMPERATURE).exp() / (even / TEMPERATURE).exp().sum()
    assert torch.allclose(importance(even), expected)
    for seed in range(20):
        steep = 12 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        weights = importance(steep)
        assert weights.max() <= HIGHEST + 1e-5
        assert weights.mean().item() == pytest.approx(1)
        assert torch.equal(weights[steep.argsort()], weights.sort().values)


def test_log_probabilities_of_a_padded_batch_are_those_of_hugging_face(attachment: Attachment) -> None:
    sequences = [[1, 5, 6, 7, 8, 9], [1, 40], [1]]
    found = log_probs(attachment, [torch.tensor(ids) for ids in sequences])
    assert [len(values) for values in found] == [5, 1, 0]
    for values, ids in zip(found[:2], sequences, strict=False):
        assert torch.allclose(values, _alone(attachment, ids), atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_turns_weigh_by_what_the_documents_tell_about_them(attachment: Attachment, strength: float) -> None:
    weighed = weigh_rows(attachment, ROWS, LEAD, strength)
    for row, new in zip(ROWS, weighed, strict=True):
        front = [t for d, s in zip(row.documents, row.separators, strict=True) for t in (*d, *s)]
        n = len(row.turns)
        full, alone = (_alone(attachment, [LEAD, *f, *row.turns])[-n:] for f in (front, []))
        counts = torch.tensor(row.weights) > 0
        gain = (full - alone)[counts]
        share = (gain / TEMPERATURE).softmax(0) * len(gain)
        expected = torch.zeros(n)
        expected[counts] = 1 - strength + strength * share
        assert torch.allclose(torch.tensor(new.weights), expected, atol=1e-4)
        assert sum(new.weights) == pytest.approx(sum(row.weights))
        assert replace(new, weights=row.weights) == row
    without = weigh_rows(attachment, ROWS, None, strength)  # the first token of the second row cannot be judged alone
    assert sum(without[1].weights) == pytest.approx(3)


def _sequence() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([LEAD, *torch.randint(4, 99, (20,), generator=torch.Generator().manual_seed(0)).tolist()])
    labels = ids.clone()
    labels[[0, 11, 12]] = IGNORED
    return ids, labels


def test_windows_of_a_stream_weigh_by_what_is_in_front_of_them(attachment: Attachment) -> None:
    ids, labels = _sequence()
    (weights,) = stream_weights(attachment, [(ids, labels)], LEAD, IGNORED, 1.0)
    assert weights is not None
    full = _alone(attachment, ids.tolist())
    expected = torch.zeros(len(ids))
    for start, stop in ((8, 16), (16, 21)):
        alone = _alone(attachment, [LEAD, *ids[start:stop].tolist()])
        # The token behind the first window is left out of the loss, as in `forward_ids`.
        counts = [i for i in range(start, stop) if labels[i] != IGNORED and i > 8]
        gain = torch.stack([full[i - 1] - alone[i - start] for i in counts])
        expected[counts] = (gain / TEMPERATURE).softmax(0) * len(counts)
    assert torch.allclose(weights, expected, atol=1e-4)
    assert stream_weights(attachment, [(ids, labels)], LEAD, IGNORED, 0.0) == [None]


def test_a_weighted_forward_has_the_weighted_mean_of_its_tokens(attachment: Attachment) -> None:
    ids, labels = _sequence()
    weights = torch.rand(len(ids), generator=torch.Generator().manual_seed(1))
    settings = {"labels": labels[None], "training": True, "seed": 0}
    plain = forward_ids(attachment, ids[None], **settings)
    ones = forward_ids(attachment, ids[None], weights=torch.ones(len(ids)), **settings)
    out = forward_ids(attachment, ids[None], weights=weights, **settings)
    assert plain.loss is not None
    assert ones.loss is not None
    assert out.loss is not None
    assert ones.weight == plain.weight == plain.n_valid_tokens
    assert torch.allclose(plain.loss, ones.loss)
    kept = [i for i in range(9, len(ids)) if labels[i] != IGNORED]
    each = functional.cross_entropy(out.logits[0, [i - 1 for i in kept]], ids[kept], reduction="none")
    assert torch.allclose(out.loss, (each * weights[kept]).sum() / weights[kept].sum(), atol=1e-5)


def test_a_stage_weighs_the_tokens_of_its_streams(attachment: Attachment) -> None:
    ids, _ = _sequence()
    row = Row((tuple(ids[1:10].tolist()),), ((),), tuple(ids[10:].tolist()), (1.0,) * 11)
    stage = Stage(name="s", steps=1, tokens=9, kinds={"text": 1.0}, modes={"stream": 1.0}, token_importance=1.0)
    with torch.no_grad():
        loss = stream_loss(attachment, [row], LEAD, stage, random.Random(0))
        (weights,) = stream_weights(attachment, [(ids, ids.clone())], LEAD, IGNORED, 1.0)
        out = forward_ids(attachment, ids[None], labels=ids[None], weights=weights, training=True, seed=0)
        plain = stream_loss(
            attachment, [row], LEAD, stage.model_copy(update={"token_importance": 0.0}), random.Random(0)
        )
    assert out.loss is not None
    assert torch.allclose(loss.value, out.loss)
    assert not torch.allclose(loss.value, plain.value)
    assert loss.weight == pytest.approx(plain.weight)
