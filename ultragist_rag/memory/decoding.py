"""How an answer is decoded: settings, sampling, and when to stop.

Is        `Decoding` (checked once), and what transformers' generate is given: logits processors and stopping criteria.
Flow      text -> [decoding] -> generate, stream, progressive.
Change    a new way to choose tokens or to stop.
Not here  the calls of generate -> generate.py; characters and stop texts in a stream -> stream.py.
Holds     a seeded draw depends on seed and scores alone, not on the batch, other threads or the global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ultragist_rag.config import check_source_bias
from ultragist_rag.errors import InputError
from ultragist_rag.memory.source_bias import Asked, SourceBias
from ultragist_rag.memory.text import TextCodec

__all__ = ["Cancelled", "Decoding", "StopTexts", "end_tokens", "logits_processors", "row_seeds"]

_STOCK = frozenset({
    "bad_words_ids",
    "begin_suppress_tokens",
    "early_stopping",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_eos_token_id",
    "length_penalty",
    "logits_processor",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "pad_token_id",
    "prefix_allowed_tokens_fn",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
    "sequence_bias",
    "stopping_criteria",
    "suppress_tokens",
})  # fmt: skip
"""Settings of transformers' generate that are handed on as they are."""

_NUMBERS = ("temperature", "top_p", "min_p", "source_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How to decode an answer.

    Attributes:
        max_new_tokens: Tokens of the answer at most.
        do_sample: Draw tokens at random instead of taking the likeliest; temperature 0 means not to.
        temperature: Scores are divided by it before drawing.
        top_p: Draw among the likeliest tokens that together have this probability.
        top_k: Draw among this many likeliest tokens; None or 0 for all.
        min_p: Draw among tokens at least this likely, relative to the likeliest.
        source_bias: How strongly an answer is held to the words of the prompt, memories included: where the last
            tokens of the answer stand in them, the scores (logarithms of probabilities) of all tokens that do not go
            on as they do are lowered by this much for each of these. 0 for not at all; 4 suits answers that stand in
            the documents. None takes `UltraGist.source_bias`, what the model was made for, and holds answers to prompts
            whose memories all know their tokens.
        num_beams: Beams of a beam search; 1 for none.
        num_return_sequences: Answers for each prompt; needs `do_sample` or as many beams.
        stop: Texts that end the answer and are not part of it.
        seed: Of the draws. Each prompt is drawn as if it were asked alone, so equal prompts get equal answers; None
            draws seeds from torch's global generator.
        cancelled: Asked after every token; True ends the answer there.
        cache_implementation: `dynamic`, a cache that grows, or `static`, one of fixed size that is kept for the next
            call: on a GPU transformers compiles decoding then, which takes a while at first. One answer per prompt.
        stock: Further settings for transformers' generate, such as `repetition_penalty`.

    Raises:
        InputError: If a value is out of range, or settings exclude each other.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    source_bias: float | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    cancelled: Callable[[], bool] | None = None
    cache_implementation: str = "dynamic"
    stock: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Decoding:
        """Make it from keywords of `generate`; those it does not know go to `stock`.

        Raises:
            InputError: If transformers' generate does not take a setting either, or it has no place here.
        """
        known = {entry.name for entry in fields(cls)} - {"stock"}
        stock = {name: value for name, value in settings.items() if name not in known}
        strange = sorted(stock.keys() - _STOCK)
        if strange:
            raise InputError(
                f"unknown settings {', '.join(strange)}: remove them. Known are {', '.join(sorted(known | _STOCK))}."
            )
        mine = {
            name: value
            for name, value in settings.items()
            if name in known and (value is not None or name not in _NUMBERS)
        }
        if "stop" in mine:
            mine["stop"] = _stop_texts(mine["stop"])
        mine.update({name: float(mine[name]) for name in _NUMBERS if name in mine})
        return cls(**mine, stock=stock)

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}, but must be at least 0.")
        if self.source_bias is not None:
            check_source_bias(self.source_bias)
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, but must lie between 0 and 1.")
        if self.top_k is not None and self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}, but must be at least 0.")
        if self.samples and self.num_beams > 1:
            raise InputError(f"do_sample with {self.num_beams} beams: choose one of the two.")
        if not self.samples and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"{self.num_return_sequences} answers from {self.num_beams} beams would be equal: set do_sample=True "
                f"or num_beams={self.num_return_sequences}."
            )
        self._check_cache()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.do_sample and self.temperature > 0

    @property
    def rows(self) -> int:
        """Rows of the batch that one prompt takes."""
        return self.num_return_sequences if self.samples else self.num_beams

    def _check_cache(self) -> None:
        if self.cache_implementation not in ("dynamic", "static"):
            raise InputError(
                f"cache_implementation is {self.cache_implementation!r}, but must be 'dynamic' or 'static'."
            )
        if self.cache_implementation == "static" and self.rows > 1:
            raise InputError(
                f"cache_implementation is 'static', which holds one row per prompt, but {self.rows} are decoded. Use "
                "'dynamic'."
            )

    def processors(self, asked: Asked) -> LogitsProcessorList:
        """Make what changes scores and draws for the answers to some prompts."""
        return logits_processors(self, row_seeds(self, len(asked.prompts)), asked)

    def criteria(self, tokenizer: Any, start: int) -> StoppingCriteriaList:
        """Make what ends decoding besides length and end token; `start` is the first column of the answers."""
        criteria = StoppingCriteriaList(self.stock.get("stopping_criteria") or [])
        if self.stop:
            if tokenizer is None:
                raise InputError("stop texts need a tokenizer, but the engine has none: use eos_token_id instead.")
            criteria.append(StopTexts(TextCodec.of(tokenizer), self.stop, start))
        if self.cancelled is not None:
            criteria.append(Cancelled(self.cancelled))
        return criteria


def _stop_texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"stop is {stop!r}, but must be texts of at least one character.")
    return texts


def end_tokens(model: Any, tokenizer: Any, decoding: Decoding) -> list[int]:
    """Return the tokens that end an answer: those of the call, else of the model, else of the tokenizer.

    Without a tokenizer ids are just numbers, as for the authors' recorded answers: only the call can name an end token.
    """
    chosen = [decoding.stock.get("eos_token_id")]
    if tokenizer is not None:
        chosen += [model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id]
    ends: int | list[int] = next((ends for ends in chosen if ends is not None), [])
    return [ends] if isinstance(ends, int) else list(ends)


def row_seeds(decoding: Decoding, n_prompts: int) -> list[int]:
    """Return a seed for every answer to every prompt, prompt by prompt; without `seed` from the global generator."""
    n = decoding.num_return_sequences
    if not decoding.samples or decoding.seed is not None:
        return [(decoding.seed or 0) * 1_000_003 + number for _ in range(n_prompts) for number in range(n)]
    seeds: list[int] = torch.randint(2**62, (n_prompts * n,)).tolist()
    return seeds


def logits_processors(decoding: Decoding, seeds: Sequence[int], asked: Asked) -> LogitsProcessorList:
    """Make what changes scores before the likeliest token is taken, and draws by doing so.

    Source: the Gumbel-max trick: the likeliest token after adding Gumbel noise is a draw from the softmax.

    Args:
        decoding: How to decode.
        seeds: Of the draws, one for each row.
        asked: What is decoded.

    Returns:
        The processors, to be used for one answer only.
    """
    processors = LogitsProcessorList(decoding.stock.get("logits_processor") or [])
    bias = asked.source_bias if decoding.source_bias is None else decoding.source_bias
    if bias:
        processors.append(SourceBias(asked, bias, decoding.stop))
    if not decoding.samples:
        return processors
    if decoding.temperature != 1:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        processors.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        processors.append(MinPLogitsWarper(decoding.min_p))
    processors.append(_Draw(seeds))
    return processors


class _Draw(LogitsProcessor):
    """Adds Gumbel noise from a generator of its own for each row."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=g) for g in self._generators])
        return scores.float() - noise.clamp(min=1e-30).log().to(scores.device)


class StopTexts(StoppingCriteria):
    """Ends a row as soon as its answer contains one of the texts."""

    def __init__(self, codec: TextCodec, stop: Sequence[str], start: int) -> None:
        """Stop rows whose text from column `start` on contains a text of `stop`."""
        self._codec, self._stop, self._start = codec, stop, start
        self._reach = 4 * max(map(len, stop)) + 4  # a character takes at most four tokens of one byte

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Look at the end of every row."""
        del scores, kwargs
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._reach) :].tolist()
        done = [any(stop in text for stop in self._stop) for text in map(self._codec.decode, tails)]
        return torch.tensor(done, device=input_ids.device)


class Cancelled(StoppingCriteria):
    """Ends all rows as soon as somebody says so."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        """Ask `cancelled` after every token."""
        self._cancelled = cancelled

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Ask."""
        del scores, kwargs
        return torch.full((input_ids.shape[0],), bool(self._cancelled()), device=input_ids.device)
