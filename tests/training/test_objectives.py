"""A batch gives the loss of its rows one by one, and memories that keep everything give the loss of the text."""

from __future__ import annotations

import random

import pytest
import torch
from architectures import ALL

from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.loop import Trainer
from ultragist_rag.training.objectives import Loss, independent_loss, joint_loss, stream_loss
from ultragist_rag.training.optim import Muon, orthogonalise
from ultragist_rag.training.planned import plan, planned_loss


def _parts(config: TrainConfig) -> tuple[Trainer, Stage, int]:
    trainer = Trainer(config)
    lead = trainer._lead()
    assert lead is not None
    return trainer, config.stages[1], lead


def full_loss(attachment: Attachment, rows: list[Row], lead: int, stage: Stage, rng: random.Random) -> Loss:
    del rng
    return planned_loss(attachment, plan(attachment.config, "full", rows, lead, stage, "", n_positions=10**6), stage)


def _weight(row: object) -> float:
    return sum(row.weights)  # type: ignore[attr-defined]


def _asking(trainer: Trainer, stage: Stage, n_documents: int) -> list[Row]:
    """Three rows with questions behind at least so many documents."""
    rows = [row for step in range(30) for row in trainer.drawn.rows_of(stage, step)]
    return [row for row in rows if row.separators[-1] and len(row.documents) >= n_documents][:3]


@pytest.mark.parametrize("objective", [full_loss, independent_loss, joint_loss])
@pytest.mark.parametrize("settings", ALL)
def test_a_batch_has_the_weighted_mean_of_its_rows(
    tiny_run: TrainConfig, objective: object, settings: dict[str, str]
) -> None:
    tiny_run = tiny_run.model_copy(update={"gist": {**tiny_run.gist, **settings}})
    trainer, stage, lead = _parts(tiny_run)
    stage = stage.model_copy(update={"ratios": (4,), "windows": (16,), "raw_share": 0.0})
    rows = _asking(trainer, stage, 1)
    with torch.no_grad():
        batch = objective(trainer.attachment, rows, lead, stage, random.Random(0)).value  # type: ignore[operator]
        alone = [objective(trainer.attachment, [row], lead, stage, random.Random(0)).value for row in rows]  # type: ignore[operator]
    weights = torch.tensor([_weight(row) for row in rows])
    assert torch.allclose(batch, (torch.stack(alone) * weights).sum() / weights.sum(), atol=1e-5)


def test_documents_left_as_text_give_the_loss_of_full_attention(tiny_run: TrainConfig) -> None:
    trainer, stage, lead = _parts(tiny_run)
    rows = _asking(trainer, stage, 2)
    assert len(rows) == 3
    with torch.no_grad():
        full = full_loss(trainer.attachment, rows, lead, stage, random.Random(0)).value
        raw_stage = stage.model_copy(update={"raw_share": 1.0})
        raw = independent_loss(trainer.attachment, rows, lead, raw_stage, random.Random(0)).value
    assert torch.allclose(full, raw, atol=1e-5)


@pytest.mark.parametrize("settings", ALL)
def test_gradients_reach_gists_through_every_window(tiny_run: TrainConfig, settings: dict[str, str]) -> None:
    tiny_run = tiny_run.model_copy(update={"gist": {**tiny_run.gist, **settings}})
    trainer, stage, lead = _parts(tiny_run)
    rows = trainer.drawn.rows_of(stage, 0)[:2]
    independent_loss(trainer.attachment, rows, lead, stage, random.Random(0)).value.backward()
    grads = [value.grad for name, value in trainer.attachment.parameters().items() if "k_proj" in name]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_a_stream_shorter_than_its_window_is_refused(tiny_run: TrainConfig) -> None:
    trainer, stage, lead = _parts(tiny_run)
    row = Row(documents=((5, 6, 7),), separators=((),), turns=(8, 9), weights=(1.0, 1.0))
    with pytest.raises(TrainingError, match="32 tokens"):
        stream_loss(trainer.attachment, [row], lead, stage, random.Random(0))


def test_orthogonalise_brings_singular_values_near_one_and_keeps_directions() -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    mine = orthogonalise(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(mine)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(mine.flatten(), (left @ right).flatten(), dim=0) > 0.95


def test_matrices_of_one_shape_are_orthogonalised_together_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 40), (40, 24)):
        several = torch.randn(3, *shape, generator=generator)
        torch.testing.assert_close(orthogonalise(several), torch.stack([orthogonalise(one) for one in several]))


def test_muon_takes_every_weight_along_its_own_orthogonal_step() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 6), (8, 6), (6, 8))]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    Muon(weights, lr=0.1, momentum=0.9).step()
    for weight, old in zip(weights, before, strict=True):
        assert weight.grad is not None
        direction = weight.grad.lerp(0.1 * weight.grad, 0.9)  # the average of one gradient, seen Nesterov's way
        torch.testing.assert_close(weight, old - 0.1 * 0.2 * 8**0.5 * orthogonalise(direction))


def test_muon_in_bfloat16_orthogonalises_in_it_and_keeps_its_weights_in_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 24, 40, generator=generator)
    steps = []
    for dtype in (None, torch.bfloat16):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        Muon([weight], lr=0.1, dtype=dtype).step()
        assert weight.dtype == torch.float32
        steps.append(weight.detach() - start)
    assert 0 < (steps[0] - steps[1]).norm() < 0.1 * steps[0].norm()
