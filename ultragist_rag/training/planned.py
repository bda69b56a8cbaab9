"""Batches whose tensors are laid out before they reach the device, and their losses.

Is        what a worker process makes of rows, `Planned`; and one forward (and one of the teacher) that gives its loss.
Flow      batches, one_pass, objectives -> [planned] -> loop.
Paper     UltraGist, arXiv 2405.16635, section 3.3; distillation after Hinton et al., arXiv 1503.02531.
Change    what a batch predicts, how a teacher's predictions count.
Not here  what is drawn -> objectives.py; rows and columns of compressed documents -> one_pass.py.
Holds     a planned batch has the loss of the same rows in objectives.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ultragist_rag.config import GistConfig
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.grouped import Groups
from ultragist_rag.training.objectives import Loss, draw_independent, draw_joint, labelled, weighted
from ultragist_rag.training.one_pass import Document, Layout, can_lay_out, lay_out, run, without_sink
from ultragist_rag.types import Part

__all__ = ["Planned", "Targets", "in_one_pass", "plan", "planned_loss"]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is predicted: flat places among batch * rows, the tokens that follow there, and their weights."""

    places: Part
    tokens: Part
    weights: Part


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A batch, ready for the device.

    Attributes:
        targets: What is predicted.
        ids: All tokens as plain text, (batch, tokens), padded on the right; None without full attention or teacher.
        text_places: Flat places in `ids` that predict the same tokens; for full attention those of `targets`.
        layout: Compressed documents; None for full attention.
        documents: Their ids, in the order of the memories, if the stage reconstructs them.
    """

    targets: Targets
    ids: Part | None = None
    text_places: Part | None = None
    layout: Layout | None = None
    documents: tuple[Part, ...] = ()

    def map(self, change: Callable[[Any], Any]) -> Planned:
        """Change every tensor."""
        return Planned(
            _mapped(self.targets, change),
            None if self.ids is None else change(self.ids),
            None if self.text_places is None else change(self.text_places),
            None if self.layout is None else _mapped(self.layout, change),
            tuple(change(document) for document in self.documents),
        )

    def to(self, device: torch.device) -> Planned:
        """The batch on a device."""
        if device.type != "cuda":
            return self.map(lambda part: part.to(device))
        return self.map(lambda part: part.pin_memory().to(device, non_blocking=True))


def _mapped(tensors: Any, change: Callable[[Any], Any]) -> Any:
    """A dataclass with each of its tensors (or arrays) changed."""
    values = {field.name: getattr(tensors, field.name) for field in fields(tensors)}
    return type(tensors)(**{name: _changed(value, change) for name, value in values.items()})


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    return _mapped(value, change) if isinstance(value, Groups) else value


def in_one_pass(config: GistConfig, stage: Stage, mode: str) -> bool:
    """Whether a mode of a stage makes its memories in one forward; the others go window by window."""
    return mode in ("independent", "joint") and stage.one_pass and can_lay_out(config)


def plan(  # noqa: PLR0913 - settings of one batch
    config: GistConfig, mode: str, rows: Sequence[Row], lead: int | None, stage: Stage, seed: str, *, n_positions: int
) -> Planned:
    """Lay a batch out; equal arguments give equal batches.

    Args:
        config: Settings of the gists.
        mode: `full`, `independent` or `joint`.
        rows: The rows.
        lead: Lead token, or None.
        stage: What is drawn.
        seed: Of the draws.
        n_positions: Positions of the model.

    Returns:
        The batch, on the CPU.

    Raises:
        ContextOverflowError: If a row does not fit into the model.
        TrainingError: If windows overlap.
    """
    if mode == "full":
        ids, targets = _as_text(rows, lead, stage.text_weight)
        return Planned(targets, ids, targets.places)
    rng = random.Random(seed)
    joint = mode == "joint"
    prompts, window = draw_joint(rows, lead, stage, rng) if joint else draw_independent(rows, stage, rng)
    layout = lay_out(
        without_sink(config, window, joint=joint), prompts, None if joint else lead, n_positions=n_positions
    )
    firsts = [1 if isinstance(prompt[-2], Document) else 0 for prompt in prompts]
    places, tokens, weights = [], [], []
    width = layout.ids.shape[1]
    for number, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        index = labelled(row, first)
        before = len(layout.prompt[number]) - len(row.turns)
        places.append(layout.prompt[number][before + index - 1] + number * width)
        tokens.append(torch.tensor(row.turns)[index])
        weights.append(torch.tensor(row.weights)[index])
    targets = Targets(torch.cat(places), torch.cat(tokens), torch.cat(weights))
    wanted = [p for prompt in prompts for p in prompt if isinstance(p, Document)] if stage.autoencoding else []
    documents = tuple(torch.tensor(piece.ids) for piece in wanted)
    planned = Planned(targets, layout=replace(layout, prompt=()), documents=documents)
    if not stage.distil:
        return planned
    ids, taught = _as_text(rows, lead, 0.0, firsts)
    return replace(planned, ids=ids, text_places=taught.places)


def planned_loss(attachment: Attachment, batch: Planned, stage: Stage) -> Loss:
    """Loss of a batch that lies on the device of the model.

    With `Stage.distil` the model's own answers from the full text, without gradient, are a second target: the loss
    gains distil * KL(full text || memories), over the same tokens and weights.

    Args:
        attachment: The model; the caller holds its lock.
        batch: The batch.
        stage: Whether a teacher counts, and whether memories are wanted.

    Returns:
        The loss, with the memories of all documents if the stage reads them again.
    """
    head = attachment.model.get_output_embeddings()
    targets = batch.targets
    if batch.layout is None:
        hidden = attachment.decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
        return weighted(head(_at(hidden, targets.places)), targets.tokens, targets.weights, stage)
    teacher = None
    if batch.ids is not None and batch.text_places is not None:
        with torch.no_grad():
            hidden = attachment.decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
            teacher = head(_at(hidden, batch.text_places)).float()
    wants_memories = stage.autoencoding > 0
    out = run(attachment, batch.layout, with_slots=wants_memories)
    logits = head(_at(out.hidden, targets.places))
    loss = weighted(logits, targets.tokens, targets.weights, stage)
    if teacher is not None:
        each = functional.kl_div(
            logits.float().log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        divergence = (each * targets.weights).sum() / targets.weights.sum().clamp_min(1e-6)
        loss = replace(loss, value=loss.value + stage.distil * divergence)
    if not wants_memories:
        return loss
    memories = out.memories(batch.layout, attachment.config)
    return replace(loss, compressed=tuple(zip(memories, batch.documents, strict=True)))


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, places)


def _as_text(
    rows: Sequence[Row], lead: int | None, text_weight: float, firsts: Sequence[int] | None = None
) -> tuple[Tensor, Targets]:
    """All tokens of the rows one behind the other, and what is predicted of turns (and documents)."""
    lines, places, tokens, weights = [], [], [], []
    for row, first in zip(rows, firsts or [0] * len(rows), strict=True):
        line = [*([] if lead is None else [lead]), *row.head]
        weight = [0.0] * len(line)
        for document, separator in zip(row.documents, row.separators, strict=True):
            line += [*document, *separator]
            weight += [text_weight] * len(document) + [0.0] * len(separator)
        turns = list(row.weights)
        turns[:first] = [0.0] * first
        lines.append(torch.tensor([*line, *row.turns]))
        weights.append(torch.tensor([*weight, *turns]))
    ids = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
    chosen = []
    for number, (line_ids, weight_row) in enumerate(zip(lines, weights, strict=True)):
        index = torch.nonzero(weight_row[1:] > 0).flatten()
        places.append(index + number * ids.shape[1])
        tokens.append(line_ids[index + 1])
        chosen.append(weight_row[index + 1])
    return ids, Targets(torch.cat(places), torch.cat(tokens), torch.cat(chosen))
