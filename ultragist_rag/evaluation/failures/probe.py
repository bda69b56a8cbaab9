"""Reconstruction probe: how many of the tokens that gists stand for can be read back from them.

Is        two decoders of different strength that get gists and must say the tokens, on texts kept from training.
Flow      memory, probe_block -> [probe] -> measure, plots, advice.
Paper     arXiv 2412.17483, table 3. Its decoders are trained for long; of ours one is trained briefly and one not at
          all, so numbers compare ratios and checkpoints with each other, not with the table.
Change    what is measured, and what it is held against.
Not here  the weak decoder -> probe_block.py; training gists by such a loss -> training.
Holds     model and gists stay as they are; equal seeds give equal numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.failures.probe_block import BlockProbe
from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import check_fit, with_lead
from ultragist_rag.memory.prompt import count_prompt, prompt_forward
from ultragist_rag.memory.text import TextCodec

__all__ = ["PROBE", "probe"]

PROBE = "failures/probe"
"""Name of the lines."""

_HELD_OUT = 0.25
_AT_ONCE = 8
_CUE = "\n\n"


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Whole windows of some texts, each condensed by itself.

    Attributes:
        ids: Token ids, shape (windows, window).
        texts: The text that each window is of.
        memories: Their gists.
    """

    ids: Tensor
    texts: tuple[int, ...]
    memories: tuple[GistMemory, ...]

    def by_text(self, right: Tensor) -> dict[int, float]:
        """Share of right tokens of each text, from flags of shape (windows, tokens)."""
        found: dict[int, list[float]] = {}
        for text, share in zip(self.texts, right.double().mean(1).tolist(), strict=True):
            found.setdefault(text, []).append(share)
        return {text: sum(shares) / len(shares) for text, shares in found.items()}


def probe(
    engine: UltraGist, texts: Sequence[str], ratio: int, *, steps: int = 100, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure how many tokens can be read back from the gists of whole windows.

    The weak decoder is one fresh block of the model's own class, trained on the spot (see `probe_block`). It says all
    tokens of a block at once, so no token helps to guess the next one.

    The strong decoder is the model itself, untrained: the gists stand in its prompt, and behind a blank line the text
    follows again. A token counts if it was the likeliest behind those in front of it, so fluent guessing counts, too.

    What guessing brings is measured with the gists of another held-out text: `other`. The difference is what the
    gists hold.

    Paper: arXiv 2412.17483, table 3.

    Args:
        engine: The model; it needs a tokenizer.
        texts: Each of at least one window; the last quarter of them, two at least, is held out for the accuracies.
        ratio: Raw tokens per gist.
        steps: Training steps of the weak decoder.
        seed: Of its weights and of what it is trained on.

    Returns:
        Lines for each held-out text and decoder: `accuracy` and `other`, shares of tokens.

    Raises:
        InputError: If there are fewer than three texts, or one is shorter than a window.
        ContextOverflowError: If gists and a window need more positions than the model has.
    """
    if len(texts) < 3:
        raise InputError(f"there are {len(texts)} texts, but one is to train and two are to measure: give at least 3.")
    rows = _cut(engine, texts)
    n_held = max(2, int(len(texts) * _HELD_OUT))
    train = _condense(engine, rows[:-n_held], 0, ratio)
    held = _condense(engine, rows[-n_held:], len(texts) - n_held, ratio)
    weak = BlockProbe.train(engine.model, train.ids, train.memories, steps=steps, seed=seed)
    shown = [held.memories, _of_others(held)]
    found = {
        "weak": [held.by_text(weak.right(held.ids, memories)) for memories in shown],
        "strong": [held.by_text(_repeat(engine, held.ids, memories)) for memories in shown],
    }
    return [
        {
            "task": PROBE,
            "id": f"{group} text {text:03}",
            "group": group,
            "method": "gist",
            "ratio": ratio,
            "scores": {"accuracy": share, "other": other[text]},
        }
        for group, (own, other) in found.items()
        for text, share in own.items()
    ]


def _cut(engine: UltraGist, texts: Sequence[str]) -> list[Tensor]:
    """Token ids of each text in whole windows, shape (windows, window)."""
    window = engine.config.window
    rows = []
    for place, text in enumerate(texts):
        ids = TextCodec.of(engine.tokenizer).encode(text)
        if len(ids) < window:
            raise InputError(f"text {place} has {len(ids)} tokens, less than a window of {window}: give longer ones.")
        rows.append(ids[: len(ids) // window * window].view(-1, window))
    return rows


@torch.no_grad()
def _condense(engine: UltraGist, rows: Sequence[Tensor], first: int, ratio: int) -> _Windows:
    ids = torch.cat(list(rows))
    memories: list[GistMemory] = []
    with engine.attachment.lock:
        for start in range(0, len(ids), _AT_ONCE):
            part = list(ids[start : start + _AT_ONCE])
            memories += compress_ids(engine.attachment, part, ratio=ratio, lead_token=engine.lead_token)
    texts = tuple(first + place for place, row in enumerate(rows) for _ in range(len(row)))
    return _Windows(ids, texts, tuple(memories))


def _of_others(windows: _Windows) -> list[GistMemory]:
    """For each window the gists of one of the next text."""
    firsts = {text: windows.texts.index(text) for text in windows.texts}
    names = list(firsts)
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    return [windows.memories[firsts[following[text]]] for text in windows.texts]


@torch.no_grad()
def _repeat(engine: UltraGist, ids: Tensor, memories: Sequence[GistMemory]) -> Tensor:
    """Which tokens of each window are the likeliest ones when it follows its memory, shape (windows, window)."""
    cue = TextCodec.of(engine.tokenizer).encode(_CUE, first=False)
    rows = []
    with engine.attachment.lock:
        for row, memory in zip(ids, memories, strict=True):
            prompt = with_lead([memory, cue, row], engine.lead_token)
            check_fit([prompt], 0, engine.max_positions)
            n_tokens = count_prompt(prompt)[1]
            wanted = torch.arange(n_tokens - len(row), n_tokens) - 1
            (logits,) = prompt_forward(engine.attachment, [prompt], wanted=[wanted]).logits
            rows.append(logits.argmax(-1).cpu() == row)
    return torch.stack(rows)
