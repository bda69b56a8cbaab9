"""Perplexity by position in the window: what stands right behind a boundary sees little but gists.

Is        the loss of every token of some texts, read window by window behind gists, and with full attention.
Flow      memory -> [position] -> measure, plots, advice.
Paper     arXiv 2412.17483, figure 3: lost by the boundary.
Change    how many bins a window has, how many windows are read.
Not here  the score of a context that is cut -> tasks/failures.py.
Holds     in the first window both ways of reading are the same; both predict the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import with_lead
from ultragist_rag.memory.prompt import count_prompt, prompt_forward
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.types import RaggedIds

__all__ = ["POSITION", "position_perplexity", "token_losses"]

POSITION = "failures/position"
"""Name of the lines."""

_MOST_WINDOWS = 4
_BINS = 16


def position_perplexity(
    engine: UltraGist, texts: Sequence[str], ratios: Sequence[int], *, bins: int = _BINS
) -> list[dict[str, Any]]:
    """Measure the mean loss by position in the window, of segment-wise compressed reading and of full attention.

    The position of a prediction is how many tokens of its window can be seen raw. The first window is left out: it has
    no gists in front of it. Texts are cut to whole windows, at most four.

    Paper: arXiv 2412.17483, figure 3.

    Args:
        engine: The model; it needs a tokenizer.
        texts: Each of at least two windows and a token.
        ratios: Raw tokens per gist.
        bins: Parts of a window that are told apart.

    Returns:
        Lines for every text and bin, of `full` and of `gist` at each ratio: `nll`, in nats per token, and `tokens`.

    Raises:
        InputError: If a text is too short, or the model has not positions enough for two windows.
    """
    window = engine.config.window
    most = min(_MOST_WINDOWS, (engine.max_positions - 2) // window)
    if most < 2:
        raise InputError(
            f"the model has {engine.max_positions} positions, less than two windows of {window} tokens: "
            "nothing can be told about positions behind a boundary."
        )
    rows: list[dict[str, Any]] = []
    for place, text in enumerate(texts):
        ids = TextCodec.of(engine.tokenizer).encode(text)
        n_windows = min(most, (len(ids) - 1) // window)
        if n_windows < 2:
            raise InputError(
                f"text {place} has {len(ids)} tokens, but must have more than 2 windows of {window}: give a longer one."
            )
        for method, ratio in (("full", None), *(("gist", ratio) for ratio in ratios)):
            losses = token_losses(engine, ids[: n_windows * window + 1], ratio)
            rows += _binned(losses[1:], min(bins, window), f"text {place:03}", method, ratio)
    return rows


@torch.no_grad()
def token_losses(engine: UltraGist, ids: RaggedIds, ratio: int | None) -> Tensor:
    """Compute the loss of every token but the first, in whole windows.

    Args:
        engine: The model.
        ids: A whole number of windows, and one token more.
        ratio: Raw tokens per gist of the windows in front; None shows them as they are.

    Returns:
        Losses in nats, shape (windows, window): place i is predicted by a token that sees itself and i others of its
        window.

    Raises:
        InputError: If there is no whole number of windows and one token more.
    """
    window = engine.config.window
    if len(ids) < window + 1 or len(ids) % window != 1 % window:
        raise InputError(f"there are {len(ids)} tokens, but must be a multiple of {window} and one more.")
    losses = []
    memory: GistMemory | None = None
    with engine.attachment.lock:
        for start in range(0, len(ids) - 1, window):
            in_front: list[Tensor | GistMemory] = [ids[:start]] if ratio is None else [memory] if memory else []
            prompt = with_lead([*in_front, ids[start : start + window]], engine.lead_token)
            n_tokens = count_prompt(prompt)[1]
            wanted = torch.arange(n_tokens - window, n_tokens)
            (logits,) = prompt_forward(engine.attachment, [prompt], wanted=[wanted]).logits
            targets = ids[start + 1 : start + window + 1].to(logits.device)
            losses.append(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").cpu())
            if ratio is not None and start + window < len(ids) - 1:
                memory = _grow(engine, ids[start : start + window], memory, ratio)
    return torch.stack(losses)


def _grow(engine: UltraGist, ids: Tensor, memory: GistMemory | None, ratio: int) -> GistMemory:
    """Condense one more window; sealed, so that the next one begins anew."""
    (grown,) = compress_ids(
        engine.attachment, [ids], ratio=ratio, lead_token=engine.lead_token, memories=[memory] if memory else None
    )
    return grown.seal()


def _binned(losses: Tensor, bins: int, text: str, method: str, ratio: int | None) -> list[dict[str, Any]]:
    rows = []
    for number, part in enumerate(losses.double().tensor_split(bins, dim=1)):
        group = f"bin {number:02}"
        scores = {"nll": float(part.mean()), "tokens": float(part.numel())}
        rows.append(
            {
                "task": POSITION,
                "id": f"{text} {group}",
                "group": group,
                "method": method,
                "ratio": ratio,
                "scores": scores,
            }
        )
    return rows
