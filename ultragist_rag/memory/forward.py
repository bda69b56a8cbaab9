"""The authors' progressive forward: a sequence grows, full windows are condensed, every raw token gets logits.

Is        the loop of `UltraGist.forward`: plan a step, run it, keep what remains; logits, loss and memory at the end.
Flow      layout, modeling -> [memory] -> engine, training.
Paper     UltraGist, arXiv 2405.16635, section 3; legacy code: `_ultragist_forward`, `_beacon_forward`.
Change    what comes out of a forward.
Not here  the steps -> layout/stream.py; composable documents -> compress.py.
Holds     logits, memory, loss and gradients equal those recorded from the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.layout.ratios import RatioState
from ultragist_rag.layout.stream import Cursor, Situation, next_step
from ultragist_rag.memory.compress import source_ids_of
from ultragist_rag.memory.memory import GistMemory, Progress
from ultragist_rag.memory.segments import segments_of, table_of
from ultragist_rag.memory.windows import KV, keep_rows, run_steps
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.types import Logits

__all__ = ["ForwardOutput", "forward_ids"]


@dataclass(frozen=True, slots=True, eq=False)
class ForwardOutput:
    """What a progressive forward gives.

    Attributes:
        logits: Of all raw tokens of the call, shape (1, tokens, vocab).
        memory: The memory behind the last token.
        loss: Mean cross entropy of the labelled tokens, if labels were given; weighted, if weights were.
        n_valid_tokens: Labelled tokens that the loss counts.
        weight: Sum of their weights.
    """

    logits: Logits
    memory: GistMemory
    loss: Tensor | None = None
    n_valid_tokens: int = 0
    weight: float = 0.0


def forward_ids(  # noqa: PLR0913 - settings of one call, all but two by keyword
    attachment: Attachment,
    input_ids: Tensor,
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    memory: GistMemory | None = None,
    training: bool = False,
    seed: int | None = None,
) -> ForwardOutput:
    """Let a sequence grow by some tokens.

    Args:
        attachment: The model; the caller holds its lock.
        input_ids: New tokens, shape (1, tokens).
        labels: Tokens to predict, shape as `input_ids`, unshifted; -100 counts for nothing.
        weights: How much each label counts, shape (tokens,); None for one each.
        memory: Memory to go on from.
        training: Leave the last window raw, and the first one out of the loss (as the authors do).
        seed: For random ratios.

    Returns:
        Logits, memory and loss.

    Raises:
        InputError: If shapes do not fit, ratios are random and there is no seed, or memories are recurrent.
        MemoryMismatchError: If the memory cannot go on.
        ContextOverflowError: If memory and window exceed the positions of the model.
    """
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise InputError(
            f"input_ids has shape {tuple(input_ids.shape)}, but must be (1, tokens) with at least one token."
        )
    if labels is not None and labels.shape != input_ids.shape:
        raise InputError(f"labels has shape {tuple(labels.shape)}, but must be {tuple(input_ids.shape)} as input_ids.")
    config, vocab = attachment.config, int(attachment.model.config.vocab_size)
    if config.memory == "recurrent":
        raise InputError(
            "memory 'recurrent' has no progressive forward, which keeps raw keys: use compress and generate."
        )
    if not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocab:
        low, high = int(input_ids.min()), int(input_ids.max())
        raise InputError(f"token ids lie between {low} and {high}, but the model has {vocab} tokens.")
    cursor, kv, open_ids = _resume(attachment, memory)
    first, start = cursor.tokens, cursor.window_start
    ids = input_ids.to(attachment.device)
    n_positions = config.adapt_positions or int(attachment.model.config.max_position_embeddings)
    generator = None if seed is None else np.random.default_rng(seed)
    situation = Situation(first + ids.shape[1], n_positions, training, generator)
    hidden, n_first = [], 0
    while cursor.tokens < situation.total:
        step, cursor = next_step(config, cursor, situation)
        everything, rows = run_steps(attachment, [step], ids, [first], kv, None)
        kv = keep_rows(everything, [step], kv.slots if kv else 0)
        raw = torch.from_numpy(np.flatnonzero(~step.is_gist)).to(rows.device)
        hidden.append(rows.index_select(1, raw))
        n_first = n_first or (cursor.tokens - first)
    logits = torch.cat([attachment.model.lm_head(part) for part in hidden], dim=1)
    assert kv is not None
    open_ids = (*open_ids, *ids[0].tolist())[cursor.window_start - start :]
    skip = n_first if training and memory is None and config.masks_first_window else 0
    loss = (None, 0, 0.0) if labels is None else _loss(logits, labels, weights, skip)
    return ForwardOutput(
        logits, _memory(attachment, cursor, kv, open_ids, memory, source_ids_of(memory, input_ids[0])), *loss
    )


def _loss(logits: Tensor, labels: Tensor, weights: Tensor | None, n_skipped: int) -> tuple[Tensor, int, float]:
    """Shift the labels once over the whole call and average over all that count."""
    targets = torch.nn.functional.pad(labels[:, 1:].to(logits.device), (0, 1), value=-100)
    targets[:, :n_skipped] = -100
    n_valid = int((targets != -100).sum())
    how, weight = ("sum", float(n_valid)) if weights is None else ("none", 0.0)
    total = torch.nn.functional.cross_entropy(logits[0].float(), targets[0], reduction=how, ignore_index=-100)
    if weights is not None:
        shifted = torch.nn.functional.pad(weights[1:].to(logits.device), (0, 1)) * (targets[0] != -100)
        total, weight = (total * shifted).sum(), float(shifted.sum())
    return total / weight if weight else total * float("nan"), n_valid, weight


def _resume(attachment: Attachment, memory: GistMemory | None) -> tuple[Cursor, KV | None, tuple[int, ...]]:
    if memory is None:
        return Cursor(), None, ()
    progress = memory.progress
    if memory.config != attachment.config:
        raise MemoryMismatchError(f"the memory was made with {memory.config}, this model has {attachment.config}.")
    if progress is None or progress.n_provisional:
        raise MemoryMismatchError(
            "the memory cannot go on token by token: make it with tail='raw', or call seal() first."
        )
    ratios = RatioState(progress.open_ratio, progress.ratio_index, progress.choices)
    table = table_of(memory.segments)
    cursor = Cursor(table, progress.tokens, progress.window_start, progress.interleave_phase, ratios)
    return cursor, KV(memory.keys, memory.values) if memory.slots else None, progress.open_ids


def _memory(
    attachment: Attachment,
    cursor: Cursor,
    kv: KV,
    open_ids: tuple[int, ...],
    before: GistMemory | None,
    source_ids: Tensor | None,
) -> GistMemory:
    progress = Progress(
        tokens=cursor.tokens,
        window_start=cursor.window_start,
        interleave_phase=cursor.phase,
        open_ratio=cursor.ratios.open,
        ratio_index=cursor.ratios.index,
        open_ids=open_ids,
        choices=cursor.ratios.choices,
    )
    return GistMemory(
        keys=kv.keys,
        values=kv.values,
        segments=segments_of(cursor.table),
        config=attachment.config,
        progress=progress,
        fingerprint=before.fingerprint if before else "",
        lead_token=before.lead_token if before else None,
        joint=before.joint if before else True,
        verbatim=before.verbatim if before else "",
        source_ids=source_ids,
    )
