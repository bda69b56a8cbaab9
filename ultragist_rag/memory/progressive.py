"""Decode while compressing: the memory grows by every token, and a full window is condensed at once.

Is        a loop over the engine's `forward`, one token at a time, as the authors' generate does.
Flow      pieces, decoding -> [progressive] -> generate.
Paper     UltraGist, arXiv 2405.16635, section 3.
Change    how a token is chosen in this mode.
Not here  the windows -> forward.py; decoding without compression -> generate.py.
Holds     greedy ids equal the authors'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.decoding import Decoding, end_tokens, logits_processors, row_seeds
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.source_bias import Asked

__all__ = ["decode_progressively"]


@torch.no_grad()
def decode_progressively(
    engine: Any, prompts: Sequence[Sequence[Tensor | GistMemory]], decoding: Decoding, streamer: Any = None
) -> list[Tensor]:
    """Decode answers to prompts one after the other, compressing on the way.

    Args:
        engine: The engine, with its `forward`.
        prompts: Token ids, which may follow one memory that can go on.
        decoding: How to decode; no beams.
        streamer: Given the prompt and then every new token.

    Returns:
        New token ids, shape (tokens,), of every answer, `num_return_sequences` for each prompt.

    Raises:
        InputError: If a memory stands elsewhere than at the head of a prompt, or beams are asked for.
    """
    if decoding.num_beams > 1:
        raise InputError(
            f"progressive=True decodes one token at a time, not {decoding.num_beams} beams: leave them out."
        )
    unheard = sorted(decoding.stock.keys() - {"eos_token_id", "pad_token_id", "logits_processor", "stopping_criteria"})
    if unheard:
        raise InputError(f"progressive=True does not know {', '.join(unheard)}: leave them out.")
    answers = []
    for prompt in prompts:
        memory = prompt[0] if isinstance(prompt[0], GistMemory) else None
        parts = [piece for piece in prompt if isinstance(piece, Tensor)]
        if len(parts) + (memory is not None) < len(prompt):
            raise InputError("progressive=True reads one stream: a memory may stand at the head of the prompt only.")
        with engine.attachment.lock:
            ids = torch.cat(parts)[None]
            answers += _decode(engine, ids, memory, decoding, streamer)
    return answers


def _decode(engine: Any, ids: Tensor, memory: GistMemory | None, decoding: Decoding, streamer: Any) -> list[Tensor]:
    if decoding.cancelled is not None and decoding.cancelled():  # while waiting for the lock
        return [torch.empty(0, dtype=torch.long)] * decoding.num_return_sequences
    seed = {} if decoding.seed is None else {"seed": decoding.seed}
    ends = set(end_tokens(engine.attachment.model, engine.tokenizer, decoding))
    if streamer is not None:
        streamer.put(ids.cpu())
    first = engine.forward(ids, memory=memory, **seed)
    prompt: list[Tensor | GistMemory] = [ids[0]] if memory is None else [memory, ids[0]]
    asked = Asked([prompt], ids.shape[1], sorted(ends), engine.tokenizer, engine.source_bias)
    answers = []
    for number in row_seeds(decoding, 1):
        choose = logits_processors(decoding, [number], asked)
        done = decoding.criteria(engine.tokenizer, ids.shape[1])
        out, all_ids = first, ids
        while True:
            scores: Any = out.logits[:, -1]
            token = choose(all_ids.to(scores.device), scores).argmax(-1, keepdim=True).to(ids.device)  # type: ignore[arg-type]
            all_ids = torch.cat((all_ids, token), dim=1)
            if streamer is not None:
                streamer.put(token[0].cpu())
            n_new = all_ids.shape[1] - ids.shape[1]
            stopped = len(done) > 0 and bool(done(all_ids, None).all())
            if stopped or int(token) in ends or n_new >= decoding.max_new_tokens:
                break
            out = engine.forward(token, memory=out.memory, **seed)
        answers.append(all_ids[0, ids.shape[1] :].cpu())
    if streamer is not None:
        streamer.end()
    return answers
