"""Losses of a batch of rows: full attention, independent documents, one joint stream.

Is        rows in, one scalar out, through the same code that serves answers: `compress_ids` and `prompt_forward`.
Flow      memory -> [objectives] -> loop.
Paper     UltraGist, arXiv 2405.16635, section 3.3: a ratio is drawn for every window; loss on what follows.
Change    what a mode puts into memories and what it leaves as text.
Holds     gradients flow through all windows; weights of zero contribute nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ultragist_rag.errors import TrainingError
from ultragist_rag.memory.compress import Verbatim, compress_ids
from ultragist_rag.memory.forward import forward_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.importance import stream_weights
from ultragist_rag.training.one_pass import Document

Piece = Tensor | GistMemory
_IGNORED = -100  # label that no loss counts


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean weighted cross entropy, with gradient, and what is logged of it, without.

    `answer` is the mean over tokens of full weight, `correct` the share of them that were on top; `weight` is the sum
    of the weights that the value is a mean over: tensors all. `compressed` holds each memory of the batch with the
    tokens it was made of, where a stage reads them again.
    """

    value: Tensor
    answer: Tensor
    correct: Tensor
    weight: Tensor
    compressed: tuple[tuple[GistMemory, Tensor], ...] = ()


def _leading(lead: int | None) -> list[int]:
    return [] if lead is None else [lead]


def labelled(row: Row, first: int = 0) -> Tensor:
    """Places of the turns that count, from `first` on: what stands right behind a memory has no token to predict it."""
    return torch.nonzero(torch.tensor(row.weights[first:]) > 0).flatten() + first


def weighted(logits: Tensor, targets: Tensor, weights: Tensor, stage: Stage) -> Loss:
    """Weighted mean cross entropy of logits of shape (tokens, vocab).

    Answers are what has full weight; where tokens are weighed by their importance, all of them.
    """
    each = functional.cross_entropy(logits.float(), targets, reduction="none")
    total = weights.sum()
    with torch.no_grad():
        full = torch.ones_like(weights) if stage.token_importance else (weights >= 1).to(weights)
        n_full = full.sum().clamp_min(1)
        answer = (each * full).sum() / n_full
        correct = ((logits.argmax(-1) == targets) * full).sum() / n_full
    return Loss((each * weights).sum() / total.clamp_min(1e-6), answer, correct, total.detach())


def draw_independent(
    rows: Sequence[Row], stage: Stage, rng: random.Random
) -> tuple[list[list[Document | Sequence[int]]], int | None]:
    """Draw what of each row is compressed, one by one, and how: prompts behind the lead token, and the window."""
    n_documents = sum(len(row.documents) for row in rows)
    raw = iter([rng.random() < stage.raw_share for _ in range(n_documents)])
    window = rng.choice(stage.windows) if stage.windows else None
    prompts = []
    for row in rows:
        prompt: list[Document | Sequence[int]] = [row.head] if row.head else []
        keeps_exact = bool(row.exact) and rng.random() < stage.verbatim_share
        exact = row.exact if keeps_exact else ((),) * len(row.documents)
        for document, separator, chosen in zip(row.documents, row.separators, exact, strict=True):
            if next(raw):
                prompt.append(document)
            else:
                prompt.append(Document(document, [rng.choice(stage.ratios) for _ in range(8)], chosen))
            if separator:
                prompt.append(separator)
        prompts.append([*prompt, row.turns])
    return prompts, window


def draw_joint(
    rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random
) -> tuple[list[list[Document | Sequence[int]]], int | None]:
    """Draw how the documents of each row, lead token in front, are compressed as one stream."""
    window = rng.choice(stage.windows) if stage.windows else None
    prompts: list[list[Document | Sequence[int]]] = []
    for row in rows:
        stream = [*_leading(lead), *row.head]
        for document, separator in zip(row.documents, row.separators, strict=True):
            stream += [*document, *separator]
        prompts.append([Document(tuple(stream), [rng.choice(stage.ratios) for _ in range(32)]), row.turns])
    return prompts, window


def independent_loss(
    attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random
) -> Loss:
    """Loss of turns behind documents that were compressed one by one, some left as text."""
    prompts, window = draw_independent(rows, stage, rng)
    return _loop_loss(attachment, rows, prompts, lead, (window, stage))


def joint_loss(attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random) -> Loss:
    """Loss of turns behind one stream of all documents, lead token inside."""
    prompts, window = draw_joint(rows, lead, stage, rng)
    return _loop_loss(attachment, rows, prompts, None, (window, stage), joint=True)


def _loop_loss(
    attachment: Attachment,
    rows: Sequence[Row],
    drawn: Sequence[Sequence[Document | Sequence[int]]],
    lead: int | None,
    settings: tuple[int | None, Stage],
    *,
    joint: bool = False,
) -> Loss:
    window, stage = settings
    documents = [piece for prompt in drawn for piece in prompt if isinstance(piece, Document)]
    ids = [torch.tensor(document.ids) for document in documents]
    made: list[GistMemory] = []
    if documents:
        flags = []
        for document in documents:
            flag = np.zeros(len(document.ids), bool)
            flag[list(document.chosen)] = True
            flags.append(flag)
        made = compress_ids(
            attachment,
            ids,
            ratio=[list(document.ratios) for document in documents],
            lead_token=lead,
            window=window,
            joint=joint,
            verbatim=Verbatim("training", flags) if any(document.chosen for document in documents) else None,
        )
    memories = iter(made)
    prompts: list[list[Piece]] = []
    for prompt in drawn:
        pieces: list[Piece] = [] if joint else [torch.tensor(_leading(lead), dtype=torch.long)]
        pieces += [next(memories) if isinstance(piece, Document) else torch.tensor(piece) for piece in prompt]
        prompts.append(pieces)
    loss = _turns_loss(attachment, rows, prompts, stage)
    return replace(loss, compressed=tuple(zip(made, ids, strict=True)))


def stream_loss(
    attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random
) -> Loss:
    """The paper's recipe: every row one sequence, condensed on the way, loss behind its first window.

    Ratios follow `GistConfig.ratio_policy`. Text rows are labelled throughout, instruction rows at their answers (and
    at their documents if the stage gives those a weight); `token_importance` weighs the labelled tokens of each window.
    Rows that fit into one window teach nothing and are skipped.

    Raises:
        TrainingError: If no row of the batch is longer than a window.
    """
    sequences = [_sequence(row, lead, label_documents=stage.text_weight > 0 or all(row.weights)) for row in rows]
    weights = stream_weights(attachment, sequences, lead, _IGNORED, stage.token_importance)
    total, weight, compressed = torch.zeros((), device=attachment.device), 0.0, []
    for (ids, labels), own in zip(sequences, weights, strict=True):
        out = forward_ids(
            attachment, ids[None], labels=labels[None], weights=own, training=True, seed=rng.randrange(2**31)
        )
        compressed.append((out.memory, ids))
        if out.loss is not None and out.n_valid_tokens:
            total = total + out.loss * out.weight
            weight += out.weight
    if not weight:
        raise TrainingError(
            f"no row of the batch has labels behind its first window of {attachment.config.window} tokens. "
            "Draw longer samples (max_chars, longest), or set a smaller window."
        )
    mean = total / weight
    told = mean.detach()
    return Loss(mean, told, torch.zeros_like(told), torch.full_like(told, weight), tuple(compressed))


def _sequence(row: Row, lead: int | None, *, label_documents: bool) -> tuple[Tensor, Tensor]:
    """Ids of a row from its lead token to its last turn, and their labels."""
    ids = [*_leading(lead), *row.head]
    labels = [_IGNORED] * len(ids)
    for document, separator in zip(row.documents, row.separators, strict=True):
        ids += [*document, *separator]
        labels += [*document] if label_documents else [_IGNORED] * len(document)
        labels += [_IGNORED] * len(separator)
    ids += row.turns
    labels += [token if weight > 0 else _IGNORED for token, weight in zip(row.turns, row.weights, strict=True)]
    return torch.tensor(ids), torch.tensor(labels)


def _turns_loss(attachment: Attachment, rows: Sequence[Row], prompts: Sequence[Sequence[Piece]], stage: Stage) -> Loss:
    """Loss of the weighted turns; the token in front of the turns has the first prediction, if it is a raw one."""
    wanted, targets, weights = [], [], []
    for row, prompt in zip(rows, prompts, strict=True):
        before = sum(len(piece) for piece in prompt[:-1] if isinstance(piece, Tensor))
        first = 0 if isinstance(prompt[-2], Tensor) else 1
        index = labelled(row, first)
        wanted.append(before + index - 1)
        targets.append(torch.tensor(row.turns)[index])
        weights.append(torch.tensor(row.weights)[index])
    state = prompt_forward(attachment, prompts, wanted=wanted)
    device = attachment.device
    return weighted(torch.cat(state.logits), torch.cat(targets).to(device), torch.cat(weights).to(device), stage)


OBJECTIVES: dict[str, Callable[[Attachment, Sequence[Row], int | None, Stage, random.Random], Loss]] = {
    "independent": independent_loss,
    "joint": joint_loss,
    "stream": stream_loss,
}
