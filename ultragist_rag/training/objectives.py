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

import torch
from torch import Tensor
from torch.nn import functional

from ultragist_rag.errors import TrainingError
from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.memory.forward import forward_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row
from ultragist_rag.training.config import Stage
from ultragist_rag.training.importance import stream_weights

Piece = Tensor | GistMemory
_IGNORED = -100  # label that no loss counts


@dataclass(frozen=True, slots=True)
class Loss:
    """Mean weighted cross entropy, with gradient; `correct` is the share of tokens of full weight that were on top.

    `weight` is the sum of the weights that it is a mean over, `compressed` holds each memory of the batch with the
    tokens it was made of.
    """

    value: Tensor
    answer: float
    correct: float
    weight: float = 0.0
    compressed: tuple[tuple[GistMemory, Tensor], ...] = ()


def _leading(lead: int | None) -> list[int]:
    return [] if lead is None else [lead]


def _weighted(logits: Tensor, targets: Tensor, weights: Tensor, full: float = 1.0) -> Loss:
    each = functional.cross_entropy(logits.float(), targets, reduction="none")
    with torch.no_grad():
        answers = weights >= full
        answer = each[answers].mean().item() if answers.any() else 0.0
        correct = (logits[answers].argmax(-1) == targets[answers]).float().mean().item() if answers.any() else 0.0
    total = weights.sum()
    return Loss((each * weights).sum() / total.clamp_min(1e-6), answer, correct, total.item())


def full_loss(attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random) -> Loss:
    """Loss with full attention over documents and turns, padded on the right."""
    del rng
    ids, weights = [], []
    for row in rows:
        line, weight = _leading(lead), [0.0] * len(_leading(lead))
        for document, separator in zip(row.documents, row.separators, strict=True):
            line += [*document, *separator]
            weight += [stage.text_weight] * len(document) + [0.0] * len(separator)
        ids.append(torch.tensor([*line, *row.turns]))
        weights.append(torch.tensor([*weight, *row.weights]))
    inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(attachment.device)
    weight_rows = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True).to(attachment.device)[:, 1:]
    hidden = attachment.decoder(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1]
    chosen = weight_rows > 0
    logits = attachment.model.get_output_embeddings()(hidden[chosen])
    return _weighted(logits, inputs[:, 1:][chosen], weight_rows[chosen])


def independent_loss(
    attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random
) -> Loss:
    """Loss of turns behind documents that were compressed one by one, some left as text."""
    documents = [torch.tensor(document) for row in rows for document in row.documents]
    raw = [rng.random() < stage.raw_share for _ in documents]
    chosen = [document for document, keep in zip(documents, raw, strict=True) if not keep]
    window = rng.choice(stage.windows) if stage.windows else None
    ratios = [[rng.choice(stage.ratios) for _ in range(8)] for _ in chosen]
    memories = compress_ids(attachment, chosen, ratio=ratios, lead_token=lead, window=window) if chosen else []
    left = iter(memories)
    pieces: list[Piece] = [document if keep else next(left) for document, keep in zip(documents, raw, strict=True)]
    loss = _prompt_loss(attachment, rows, pieces, lead)
    return replace(loss, compressed=tuple(zip(memories, chosen, strict=True)))


def joint_loss(attachment: Attachment, rows: Sequence[Row], lead: int | None, stage: Stage, rng: random.Random) -> Loss:
    """Loss of turns behind one stream of all documents, lead token inside."""
    streams = []
    for row in rows:
        parts = _leading(lead)
        for document, separator in zip(row.documents, row.separators, strict=True):
            parts += [*document, *separator]
        streams.append(torch.tensor(parts))
    window = rng.choice(stage.windows) if stage.windows else None
    ratios = [[rng.choice(stage.ratios) for _ in range(32)] for _ in streams]
    memories = compress_ids(attachment, streams, ratio=ratios, window=window, joint=True)
    prompts: list[list[Piece]] = [[memory, torch.tensor(row.turns)] for memory, row in zip(memories, rows, strict=True)]
    return replace(_turns_loss(attachment, rows, prompts), compressed=tuple(zip(memories, streams, strict=True)))


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
    return Loss(mean, mean.item(), 0.0, weight, tuple(compressed))


def _sequence(row: Row, lead: int | None, *, label_documents: bool) -> tuple[Tensor, Tensor]:
    """Ids of a row from its lead token to its last turn, and their labels."""
    ids, labels = _leading(lead), [_IGNORED] * len(_leading(lead))
    for document, separator in zip(row.documents, row.separators, strict=True):
        ids += [*document, *separator]
        labels += [*document] if label_documents else [_IGNORED] * len(document)
        labels += [_IGNORED] * len(separator)
    ids += row.turns
    labels += [token if weight > 0 else _IGNORED for token, weight in zip(row.turns, row.weights, strict=True)]
    return torch.tensor(ids), torch.tensor(labels)


def _prompt_loss(attachment: Attachment, rows: Sequence[Row], pieces: Sequence[Piece], lead: int | None) -> Loss:
    prompts: list[list[Piece]] = []
    taken = iter(pieces)
    for row in rows:
        prompt: list[Piece] = [torch.tensor(_leading(lead), dtype=torch.long)]
        for separator in row.separators:
            prompt.append(next(taken))
            if separator:
                prompt.append(torch.tensor(separator))
        prompts.append([*prompt, torch.tensor(row.turns)])
    return _turns_loss(attachment, rows, prompts)


def _turns_loss(attachment: Attachment, rows: Sequence[Row], prompts: Sequence[Sequence[Piece]]) -> Loss:
    """Loss of the weighted turns; the token in front of the turns has the first prediction, if it is a raw one."""
    wanted, targets, weights = [], [], []
    for row, prompt in zip(rows, prompts, strict=True):
        before = sum(len(piece) for piece in prompt[:-1] if isinstance(piece, Tensor))
        first = 0 if isinstance(prompt[-2], Tensor) else 1
        weight = torch.tensor(row.weights)
        index = torch.nonzero(weight[first:] > 0).flatten() + first
        wanted.append(before + index - 1)
        targets.append(torch.tensor(row.turns)[index])
        weights.append(weight[index])
    state = prompt_forward(attachment, prompts, wanted=wanted)
    device = attachment.device
    every = 0.0  # tokens of weight zero are left out above
    return _weighted(torch.cat(state.logits), torch.cat(targets).to(device), torch.cat(weights).to(device), every)


OBJECTIVES: dict[str, Callable[[Attachment, Sequence[Row], int | None, Stage, random.Random], Loss]] = {
    "full": full_loss,
    "independent": independent_loss,
    "joint": joint_loss,
    "stream": stream_loss,
}
