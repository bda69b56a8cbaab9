"""The loss of one batch with all its parts, as one call of one module.

Is        a module whose forward weighs tokens, runs the objective of a mode, and adds the loss of autoencoding.
Flow      objectives, autoencoding, importance -> [combined] -> loop. Wrappers (DDP, FSDP) see this one call.
Change    which parts a loss has.
Not here  what a part is -> objectives.py, autoencoding.py, importance.py.
Holds     with `autoencoding` and `token_importance` at 0 the loss is that of the objective alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.autoencoding import GistDecoder, autoencoding_loss
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.importance import weigh_rows
from ultragist_rag.training.objectives import OBJECTIVES
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

    answer: float
    correct: float
    autoencoding: float
    weight: float


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

    def forward(self, mode: str, rows: Sequence[Row], stage: Stage, seed: str) -> tuple[Tensor, Parts]:
        """Loss of one batch, and its parts."""
        rng = random.Random(seed)
        if mode in ("independent", "joint"):
            rows = weigh_rows(self._attachment, rows, self._lead, stage.token_importance)
        loss = OBJECTIVES[mode](self._attachment, rows, self._lead, stage, rng)
        value, told = loss.value, 0.0
        if self.autoencoder is not None and stage.autoencoding and loss.compressed:
            memories, documents = zip(*loss.compressed, strict=True)
            extra = autoencoding_loss(self.autoencoder, memories, documents, rng)
            value, told = value + stage.autoencoding * extra, extra.item()
        if self._several:
            value = touch_all(value, self.parameters())
        return value, Parts(loss.answer, loss.correct, told, loss.weight)
