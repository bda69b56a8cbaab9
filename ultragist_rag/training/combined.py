"""The loss of one batch with all its parts, as one call of one module.

Is        a module whose forward weighs tokens, runs the objective of a mode, and adds the loss of autoencoding.
Flow      drawing, planned, objectives, autoencoding, importance -> [combined] -> loop. Wrappers (DDP, FSDP) see one
          call.
Change    which parts a loss has.
Not here  what a part is -> objectives.py, autoencoding.py, importance.py.
Holds     with `autoencoding` and `token_importance` at 0 the loss is that of the objective alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.autoencoding import GistDecoder, autoencoding_loss
from ultragist_rag.training.batches import Row
from ultragist_rag.training.drawing import Batch
from ultragist_rag.training.importance import weigh_rows
from ultragist_rag.training.objectives import OBJECTIVES, Loss
from ultragist_rag.training.planned import Planned, in_one_pass, plan, planned_loss
from ultragist_rag.training.processes import touch_all

__all__ = ["Combined", "Parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a loss is made of.

    Attributes:
        answer: Mean over the tokens of full weight.
        correct: Share of them that were on top.
        autoencoding: Loss of autoencoding, before the stage's weight.
        weight: Sum of the token weights that the objective is a mean over.
    """

    answer: Tensor
    correct: Tensor
    autoencoding: Tensor
    weight: Tensor


class Combined(nn.Module):
    """The loss of a batch as a module's forward.

    Args:
        attachment: The model.
        lead: Token at position 0; None for none.
        autoencoder: Decoder of autoencoding; None if no stage has it.
        several: Whether other processes wait for a gradient of every parameter.
    """

    def __init__(
        self, attachment: Attachment, lead: int | None, autoencoder: GistDecoder | None = None, *, several: bool = False
    ) -> None:
        """Take the parts."""
        super().__init__()
        self.model = attachment.model
        self.autoencoder = autoencoder
        self._attachment = attachment
        self._lead = lead
        self._several = several

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained by name: that of the model's own, and `autoencoder.` with that of the decoder."""
        named = ((name.removeprefix("model."), value) for name, value in self.named_parameters())
        return {name: value for name, value in named if value.requires_grad}

    def tie_weights(self) -> None:
        """Tie what the model ties; accelerate asks for it once the weights are in parts."""
        self.model.tie_weights()

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        """Loss of one batch, and its parts."""
        stage = batch.stage
        rng = random.Random(batch.seed)
        loss = self._loss(batch, rng)
        value, told = loss.value, torch.zeros_like(loss.answer)
        if self.autoencoder is not None and stage.autoencoding and loss.compressed:
            memories, documents = zip(*loss.compressed, strict=True)
            extra = autoencoding_loss(self.autoencoder, memories, documents, rng)
            value, told = value + stage.autoencoding * extra, extra.detach()
        if self._several:
            value = touch_all(value, self.parameters())
        return value, Parts(loss.answer, loss.correct, told, loss.weight)

    def _loss(self, batch: Batch, rng: random.Random) -> Loss:
        attachment, stage = self._attachment, batch.stage
        if batch.planned is not None:
            return planned_loss(attachment, batch.planned.to(attachment.device), stage)
        rows: Sequence[Row] = batch.rows
        if batch.mode in ("independent", "joint"):
            rows = weigh_rows(attachment, rows, self._lead, stage.token_importance)
        if in_one_pass(attachment.config, stage, batch.mode):
            return planned_loss(attachment, self._plan(batch, rows).to(attachment.device), stage)
        return OBJECTIVES[batch.mode](attachment, rows, self._lead, stage, rng)

    def _plan(self, batch: Batch, rows: Sequence[Row]) -> Planned:
        config, n_positions = self._attachment.config, self._attachment.n_positions
        return plan(config, batch.mode, rows, self._lead, batch.stage, batch.seed, n_positions=n_positions)
