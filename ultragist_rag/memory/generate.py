"""Ask: decode answers to prompts of texts, ids and memories, with the stock generate of transformers.

Is        what `begin` prepared handed to `model.generate`, and what comes back cut into answers.
Flow      beginning, pieces, decoding -> [generate] -> engine.
Change    what an answer says about itself, how generate is called.
Not here  settings and stopping -> decoding.py; token by token -> stream.py; compressing on -> progressive.py.
Holds     a prompt in a batch gets the answer that it gets alone, and memories are the same afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.attribution import SourceKind, check_sources, with_sources
from ultragist_rag.memory.beginning import begin
from ultragist_rag.memory.decoding import Decoding, end_tokens
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Engine, as_batch, check_fit, to_prompt
from ultragist_rag.memory.progressive import decode_progressively
from ultragist_rag.memory.prompt import count_prompt
from ultragist_rag.memory.source_bias import Asked, check_source_ids
from ultragist_rag.memory.static import static_cache
from ultragist_rag.memory.text import Detokenizer, TextCodec
from ultragist_rag.modeling.modes import in_eval_mode

__all__ = ["Answer", "answer", "ask", "askable", "cut_answer", "decode", "generate", "n_columns"]

_MAX_ROWS = 32
"""Answers that are decoded side by side."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One answer to one prompt.

    Attributes:
        text: What was said, without end token and stop text; empty if the engine has no tokenizer.
        ids: Its token ids, shape (tokens,), the end token included.
        finish: Why it ended: `end` (end token), `stop` (stop text), `length` or `cancelled`.
        n_slots: Memory slots of the prompt.
        n_prompt_tokens: Tokens of the prompt.
        n_from_text: Documents of the prompt that were read from their text instead of their memory.
        sources: How much the answer was read from each memory of the prompt, in prompt order; None unless asked for, or
            if it was cancelled.
    """

    text: str
    ids: Tensor
    finish: Literal["end", "stop", "length", "cancelled"]
    n_slots: int
    n_prompt_tokens: int
    n_from_text: int = 0
    sources: tuple[float, ...] | None = None


def generate(
    engine: Engine, pieces: Any, *, progressive: bool = False, return_ids: bool = False, **settings: Any
) -> Any:
    """Answer prompts.

    Source: prompt assembly is ours, decoding is transformers'; `progressive` is UltraGist, arXiv 2405.16635, section 3.

    Args:
        engine: The engine.
        pieces: One prompt: text, ids of shape (1, tokens) and memories in any order, in a list. Or a list of prompts.
        progressive: Go on compressing while reading and decoding, as the authors do; for texts longer than the model.
        return_ids: Give token ids instead of text; always so without a tokenizer.
        settings: Of `Decoding`, such as max_new_tokens, do_sample, temperature, num_beams, stop and seed.

    Returns:
        For one prompt its answer: a text, or ids of shape (1, tokens); a list of them if num_return_sequences > 1.
        For a list of prompts a list of these.

    Raises:
        InputError: If a piece or a setting does not fit, or a prompt does not end in text.
        MemoryMismatchError: If a memory was made otherwise than this engine does.
        ContextOverflowError: If slots, tokens and new tokens of a prompt exceed the positions of the model.
    """
    batch, is_single = as_batch(pieces)
    answers = answer(engine, batch, Decoding.of(settings), progressive=progressive)
    as_ids = return_ids or engine.tokenizer is None
    return _as_asked([[one.ids[None] if as_ids else one.text for one in several] for several in answers], is_single)


def ask(
    engine: Engine, pieces: Any, *, progressive: bool = False, sources: SourceKind | None = None, **settings: Any
) -> Any:
    """Answer prompts as `generate` does, with what is worth knowing about each answer.

    Args:
        engine: The engine.
        pieces: One prompt: text, ids of shape (1, tokens) and memories in any order, in a list. Or a list of prompts.
        progressive: Go on compressing while reading and decoding.
        sources: `attention` or `leave-one-out`: score what each memory gave to the answer; see `memory.attribution`.
        settings: Of `Decoding`.

    Returns:
        For one prompt its `Answer`; a list of them if num_return_sequences > 1. For a list of prompts a list of these.

    Raises:
        InputError: If a piece or a setting does not fit, or a prompt does not end in text.
        MemoryMismatchError: If a memory was made otherwise than this engine does.
        ContextOverflowError: If slots, tokens and new tokens of a prompt exceed the positions of the model.
    """
    batch, is_single = as_batch(pieces)
    answers = answer(engine, batch, Decoding.of(settings), progressive=progressive, sources=sources)
    return _as_asked(answers, is_single)


def _as_asked(answers: Sequence[Sequence[Any]], is_single: bool) -> Any:
    given = [several[0] if len(several) == 1 else several for several in answers]
    return given[0] if is_single else given


def answer(
    engine: Engine,
    batch: Sequence[Sequence[Any]],
    decoding: Decoding,
    *,
    progressive: bool = False,
    sources: SourceKind | None = None,
) -> list[list[Answer]]:
    """Answer prompts, with what is worth knowing about each answer.

    Args:
        engine: The engine.
        batch: Prompts of texts, ids and memories.
        decoding: How to decode.
        progressive: Go on compressing while reading and decoding.
        sources: How to find out which memories an answer was read from; None for not at all.

    Returns:
        For each prompt `num_return_sequences` answers.
    """
    check_sources(sources, progressive=progressive)
    prompts = askable(engine, batch, decoding, progressive=progressive)
    decoder = decode_progressively if progressive else decode
    groups = _groups(prompts, decoding, engine.attachment.n_positions)
    rows = iter([row for group in groups for row in decoder(engine, group, decoding)])
    answers = [
        [cut_answer(engine, prompt, next(rows), decoding) for _ in range(decoding.num_return_sequences)]
        for prompt in prompts
    ]
    return answers if sources is None else with_sources(engine, prompts, answers, sources)


def askable(
    engine: Engine, batch: Sequence[Sequence[Any]], decoding: Decoding, *, progressive: bool = False
) -> list[list[Tensor | GistMemory]]:
    """Turn pieces into prompts that can be asked: they end in text and leave room for an answer.

    Args:
        engine: The engine.
        batch: Prompts of texts, ids and memories.
        decoding: How long the answer may be.
        progressive: Whether the text is compressed on the way, so that it need not fit.

    Returns:
        Prompts of ids and memories.

    Raises:
        InputError: If a prompt is empty or ends in a memory, or `source_bias` is set and a memory has no `source_ids`.
    """
    prompts = [to_prompt(engine, pieces) for pieces in batch]
    if decoding.source_bias:
        check_source_ids(prompts)
    for prompt in prompts:
        if not prompt or not isinstance(prompt[-1], Tensor):
            raise InputError("a prompt is empty or ends in a memory: put text behind it, a question for example.")
    if not progressive:
        check_fit(prompts, decoding.max_new_tokens, engine.attachment.n_positions)
    return prompts


def _groups(prompts: Sequence[Any], decoding: Decoding, n_positions: int) -> list[list[Any]]:
    """Split a batch into groups that are decoded side by side, in order.

    A group has few rows, and with its padding no more columns than a prompt may have: a sliding window counts columns.
    """
    groups: list[list[Any]] = []
    for prompt in prompts:
        joined = [*groups[-1], prompt] if groups else []
        fits = bool(joined) and n_columns(joined, decoding.max_new_tokens) <= n_positions
        if fits and len(joined) * decoding.rows <= _MAX_ROWS:
            groups[-1] = joined
        else:
            groups.append([prompt])
    return groups


def n_columns(prompts: Sequence[Any], max_new_tokens: int) -> int:
    """Count the columns that prompts take side by side, padding and new tokens included."""
    slots, tokens = zip(*map(count_prompt, prompts), strict=True)
    return int(max(slots) + max(tokens) + max_new_tokens)


@torch.no_grad()
def decode(
    engine: Engine, prompts: Sequence[Sequence[Tensor | GistMemory]], decoding: Decoding, streamer: Any = None
) -> list[Tensor]:
    """Decode answers to prompts that can be asked; holds the lock of the model meanwhile.

    Args:
        engine: The engine.
        prompts: Prompts of ids and memories that end in a token.
        decoding: How to decode.
        streamer: Given every new token, as transformers' streamers are; for one answer to one prompt.

    Returns:
        New token ids, shape (tokens,), of every answer; they may go on behind an end token.
    """
    model = engine.attachment.model
    with engine.attachment.lock, in_eval_mode(model):
        if decoding.cancelled is not None and decoding.cancelled():  # while waiting for the lock
            return [torch.empty(0, dtype=torch.long)] * (len(prompts) * decoding.num_return_sequences)
        static = None
        if decoding.cache_implementation == "static":
            static = static_cache(model, len(prompts), n_columns(prompts, decoding.max_new_tokens))
        assembled = getattr(engine, "assembled", None)
        start = begin(engine.attachment, prompts, assembled=assembled, static=static)
        if decoding.rows > 1:
            start.cache.batch_repeat_interleave(decoding.rows)
        start = start.copied(decoding.rows if decoding.samples else 1)
        ends = end_tokens(model, engine.tokenizer, decoding)
        asked = Asked(prompts, start.ids.shape[1], ends, engine.tokenizer, engine.source_bias)
        with start.masked(engine.attachment.decoder):
            output = model.generate(
                start.ids,
                attention_mask=start.filled.long(),
                position_ids=start.positions,
                past_key_values=start.cache,
                streamer=streamer,
                **_generate_settings(model, decoding, ends),
                logits_processor=decoding.processors(asked),
                stopping_criteria=decoding.criteria(engine.tokenizer, start.ids.shape[1]),
            )
    return list(output[:, start.ids.shape[1] :].cpu())


def _generate_settings(model: Any, decoding: Decoding, ends: list[int]) -> dict[str, Any]:
    mine = {
        name: value for name, value in decoding.stock.items() if name not in ("logits_processor", "stopping_criteria")
    }
    padding = model.generation_config.pad_token_id
    return {
        # Draws are made by a logits processor of ours; what the checkpoint says about sampling has no say.
        "do_sample": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "use_cache": True,
        "pad_token_id": padding if padding is not None else ends[0] if ends else 0,
        "max_new_tokens": decoding.max_new_tokens,
        "num_beams": decoding.num_beams,
        "num_return_sequences": 1 if decoding.samples else decoding.num_return_sequences,
        **mine,
        "eos_token_id": ends or None,
    }


def cut_answer(engine: Engine, prompt: Sequence[Tensor | GistMemory], ids: Tensor, decoding: Decoding) -> Answer:
    """Make an answer of what was decoded: nothing behind an end token, nothing from a stop text on.

    Args:
        engine: The engine.
        prompt: The prompt of ids and memories.
        ids: New token ids, shape (tokens,).
        decoding: How they were decoded.

    Returns:
        The answer, without sources.
    """
    slots, tokens = count_prompt(prompt)
    ends = torch.isin(
        ids, torch.tensor(end_tokens(engine.attachment.model, engine.tokenizer, decoding), dtype=ids.dtype)
    )
    stop = int(ends.nonzero()[0]) if ends.any() else len(ids)
    finish: Literal["end", "stop", "length", "cancelled"] = "end" if stop < len(ids) else "length"
    said, ids = ids[:stop], ids[: stop + 1]
    text = ""
    if engine.tokenizer is not None:
        text, n_said = _text_before(TextCodec.of(engine.tokenizer), said, decoding.stop)
        if n_said is not None:
            finish, ids = "stop", said[:n_said]
    if finish == "length" and len(ids) < decoding.max_new_tokens:
        finish = "cancelled"
    return Answer(text, ids, finish, slots, tokens)


def _text_before(codec: TextCodec, ids: Tensor, stop: Sequence[str]) -> tuple[str, int | None]:
    """Return the text before the first stop text and how many tokens it takes; None for the whole."""
    detokenizer, text = Detokenizer(codec), ""
    lengths = [0]  # characters after each token
    for token in ids.tolist():
        text += detokenizer.push(token)
        lengths.append(len(text))
    text += detokenizer.flush()
    cut = min((place for place in map(text.find, stop) if place >= 0), default=None)
    if cut is None:
        return text, None
    return text[:cut], lengths.index(max(length for length in lengths if length <= cut))
