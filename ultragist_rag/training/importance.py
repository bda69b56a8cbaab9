"""Segment-wise token importance: tokens that need the compressed context weigh more in the loss.

Is        weights per token from two passes without gradient: with the full context, and with the own segment alone.
Flow      memory, modeling, batches -> [importance] -> objectives, combined.
Paper     Gist token study, arXiv 2412.17483, segment-wise token importance estimation; formula and cap are ours.
Change    how a difference of log-probabilities becomes a weight, what a segment is.
Not here  what is done with the weights -> objectives.py.
Holds     the weights of a segment have mean 1 and none exceeds `HIGHEST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.modes import in_eval_mode
from ultragist_rag.training.batches import Row

__all__ = ["HIGHEST", "TEMPERATURE", "importance", "log_probs", "stream_weights", "weigh_rows"]

TEMPERATURE = 2.0
"""Difference in nats over which a weight grows e-fold."""

HIGHEST = 5.0
"""Highest weight of a token; what it would have beyond goes to the other tokens of the segment."""

_ROWS = 1024  # hidden rows whose logits are made at a time


def importance(differences: Tensor) -> Tensor:
    """Weigh the tokens of one segment: w_i = n exp(d_i / T) / sum of exp(d_j / T), capped at `HIGHEST`.

    Args:
        differences: log p(token | full context) - log p(token | segment alone), shape (n,).

    Returns:
        Weights of mean 1, shape (n,).
    """
    n = len(differences)
    scores = differences.double() / TEMPERATURE
    capped = torch.zeros(n, dtype=torch.bool)
    while True:
        share = scores.masked_fill(capped, -torch.inf).softmax(0)
        weights = torch.where(capped, HIGHEST, share * (n - HIGHEST * int(capped.sum())))
        over = ~capped & (weights > HIGHEST)
        if not over.any():
            return weights.float()
        capped |= over


def log_probs(attachment: Attachment, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Log-probability of every token behind those in front of it, with full attention and without gradient.

    Args:
        attachment: The model.
        sequences: Token ids, shape (tokens,) each.

    Returns:
        For each sequence a tensor of shape (tokens - 1,) on the CPU: the first token has none.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True).to(attachment.device)
    head = attachment.model.get_output_embeddings()
    with torch.no_grad(), in_eval_mode(attachment.model):
        hidden = attachment.decoder(input_ids=padded, use_cache=False).last_hidden_state
        found = []
        for row, ids, sequence in zip(hidden, padded, sequences, strict=True):
            pairs = zip(row[: len(sequence) - 1].split(_ROWS), ids[1 : len(sequence)].split(_ROWS), strict=True)
            parts = [head(part).float().log_softmax(-1).gather(1, told[:, None])[:, 0] for part, told in pairs]
            found.append(torch.cat(parts).cpu())
    return found


def weigh_rows(attachment: Attachment, rows: Sequence[Row], lead: int | None, strength: float) -> list[Row]:
    """Weigh the turns of rows by how much they need the documents: w = 1 - strength + strength * importance.

    The turns are the segment, their tokens with a weight the ones that count.

    Args:
        attachment: The model, which judges with full attention.
        rows: Rows.
        lead: Token in front of everything; None for none.
        strength: 0 leaves the weights as they are.

    Returns:
        Rows with new weights; the sum of each row's weights stays.
    """
    if not strength:
        return list(rows)
    first = [] if lead is None else [lead]
    fronts = [
        [t for pair in zip(row.documents, row.separators, strict=True) for part in pair for t in part] for row in rows
    ]
    full = log_probs(attachment, [torch.tensor([*first, *f, *row.turns]) for f, row in zip(fronts, rows, strict=True)])
    alone = log_probs(attachment, [torch.tensor([*first, *row.turns]) for row in rows])
    weighed = []
    for row, whole, own in zip(rows, full, alone, strict=True):
        weights = torch.tensor(row.weights)
        counts = torch.nonzero(weights > 0).flatten()
        difference = _at_end(whole, len(weights)) - _at_end(own, len(weights))
        weights[counts] *= _mixed(_known(difference[counts]), strength)
        weighed.append(replace(row, weights=tuple(weights.tolist())))
    return weighed


def stream_weights(
    attachment: Attachment,
    sequences: Sequence[tuple[Tensor, Tensor]],
    lead: int | None,
    ignored: int,
    strength: float,
) -> list[Tensor | None]:
    """Weigh the labelled tokens of sequences that are condensed on the way; the segments are the windows.

    A token that the loss leaves out for lying in the first window has no part in the mean.

    Args:
        attachment: The model, which judges with full attention.
        sequences: Ids and labels of each sequence.
        lead: Token that every sequence begins with, and that stands in front of each window alone; None for none.
        ignored: Label that counts for nothing.
        strength: 0 gives None: every token weighs the same.

    Returns:
        Weights of each sequence, shape (tokens,).
    """
    if not strength:
        return [None] * len(sequences)
    config = attachment.config
    found: list[Tensor | None] = []
    for (ids, labels), full in zip(sequences, log_probs(attachment, [ids for ids, _ in sequences]), strict=True):
        edges = [0, *range(config.window, len(ids), config.n_stride), len(ids)]
        spans = [(a, b) for a, b in pairwise(edges) if a < b]
        first = ids[: int(lead is not None)]
        alone = log_probs(attachment, [torch.cat((first, ids[a:b])) if a else ids[a:b] for a, b in spans])
        counted = (labels != ignored) & (torch.arange(len(ids)) > (config.window if config.masks_first_window else 0))
        whole = _at_end(full, len(ids))
        weights = torch.zeros(len(ids))
        for (a, b), own in zip(spans, alone, strict=True):
            place = a + torch.nonzero(counted[a:b]).flatten()
            weights[place] = _mixed(_known(whole[place] - _at_end(own, b - a)[place - a]), strength)
        found.append(weights)
    return found


def _at_end(values: Tensor, n: int) -> Tensor:
    """The last n values; a token without one in front gets NaN."""
    return torch.cat((torch.full((max(0, n - len(values)),), torch.nan), values))[-n:]


def _known(differences: Tensor) -> Tensor:
    """A token that one pass cannot judge counts as one that needs no context."""
    return differences.nan_to_num(0.0)


def _mixed(differences: Tensor, strength: float) -> Tensor:
    return 1 - strength + strength * importance(differences) if len(differences) else differences
