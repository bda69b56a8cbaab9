"""Decode prompts side by side, each with settings of its own.

Is        `Row`, a prompt on its way through a batch, and what lets generate treat every row as its own settings say.
Flow      decoding, generate -> [rows] -> batching.
Change    which settings may differ inside a batch.
Not here  one batch with one setting -> generate.py; who waits for whom -> batching.py.
Holds     a row gets the answer that its prompt gets alone, whatever its neighbours ask for, and ends when that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from ultragist_rag.memory.decoding import Decoding, end_tokens, logits_processors, row_seeds
from ultragist_rag.memory.generate import decode, n_columns
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Engine
from ultragist_rag.memory.source_bias import Asked

__all__ = ["Row", "decode_rows", "n_side_by_side"]


class Row:
    """A prompt that is decoded as a row of a batch.

    Attributes:
        prompt: Ids and memories that end in a token.
        decoding: How to decode; one answer, no beams.
        ids: Tokens of the answer so far.
        is_over: Whether it takes no more tokens.
        error: What its own hooks raised.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[Tensor | GistMemory],
        decoding: Decoding,
        on_token: Callable[[int], object] | None = None,
    ) -> None:
        """Begin with no token.

        Args:
            engine: That will decode it.
            prompt: Ids and memories that end in a token.
            decoding: How to decode.
            on_token: Given every token as soon as it is there.
        """
        self.prompt, self.decoding = prompt, decoding
        self.ends = end_tokens(engine.attachment.model, engine.tokenizer, decoding)
        self.seeds = row_seeds(decoding, 1) if decoding.rows == 1 else []
        self.ids: list[int] = []
        self.is_over = False
        self.error: BaseException | None = None
        self._on_token = on_token
        self._n_given = 0

    @property
    def is_alone(self) -> bool:
        """Whether its settings let no other row stand beside it: beams, several answers, settings of transformers."""
        return self.decoding.rows > 1 or bool(self.decoding.stock.keys() - {"eos_token_id"})

    @property
    def is_unwanted(self) -> bool:
        """Whether it is over, or nobody wants its answer any more."""
        try:
            if not self.is_over and self._is_cancelled():
                self.end()
        except BaseException as error:
            self.end(error)
        return self.is_over

    def begin(self) -> None:
        """Begin anew; tokens that were given to `on_token` before are not given again."""
        self.ids = []

    def take(self, token: int, is_stopped: Callable[[], bool]) -> None:
        """Take the next token.

        Args:
            token: Its id.
            is_stopped: Says whether a stop text ends the answer here.
        """
        self.ids.append(token)
        try:
            self._give(token)
            if (
                token in self.ends
                or len(self.ids) == self.decoding.max_new_tokens
                or is_stopped()
                or self._is_cancelled()
            ):
                self.end()
        except BaseException as error:  # of a function that the caller gave
            self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Take no more tokens; called once or more."""
        self.is_over, self.error = True, self.error or error

    def _give(self, token: int) -> None:
        if self._on_token is not None and len(self.ids) > self._n_given:
            self._n_given = len(self.ids)
            self._on_token(token)

    def _is_cancelled(self) -> bool:
        return self.decoding.cancelled is not None and self.decoding.cancelled()


def n_side_by_side(rows: Sequence[Row], n_positions: int) -> int:
    """Count the rows, from the first one on, that one batch can decode.

    Args:
        rows: At least one, in the order in which they are to be served.
        n_positions: Positions that the model can use.

    Returns:
        How many, at least 1.
    """
    n = 1
    while n < len(rows) and _can_be_batch(rows[: n + 1], n_positions):
        n += 1
    return n


def _can_be_batch(rows: Sequence[Row], n_positions: int) -> bool:
    longest = max(row.decoding.max_new_tokens for row in rows)
    return (
        not any(row.is_alone for row in rows)
        and all(row.ends == rows[0].ends for row in rows)
        and len({row.decoding.cache_implementation for row in rows}) == 1
        and n_columns([row.prompt for row in rows], longest) <= n_positions
    )


def decode_rows(engine: Engine, rows: Sequence[Row]) -> None:
    """Decode rows until all are over; holds the lock of the model meanwhile.

    Args:
        engine: The engine.
        rows: Rows that can be decoded in one batch, none of them with beams or several answers.
    """
    for row in rows:
        row.begin()
    decoding = _SideBySide(
        max_new_tokens=max(row.decoding.max_new_tokens for row in rows),
        stock=rows[0].decoding.stock,
        cache_implementation=rows[0].decoding.cache_implementation,
        cancelled=lambda: all(row.is_unwanted for row in rows),
        each=tuple(rows),
    )
    decode(engine, [row.prompt for row in rows], decoding)
    for row in rows:
        row.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class _SideBySide(Decoding):
    """Settings of a batch in which every row has its own."""

    each: tuple[Row, ...]

    def processors(self, asked: Asked) -> LogitsProcessorList:
        return LogitsProcessorList([_EachProcessed(self.each, asked)])

    def criteria(self, tokenizer: Any, start: int) -> StoppingCriteriaList:
        return StoppingCriteriaList([_EachTakes(self.each, tokenizer, start)])


class _EachProcessed(LogitsProcessor):
    """Changes the scores of each row by its own settings; rows of equal settings at once."""

    def __init__(self, rows: Sequence[Row], asked: Asked) -> None:
        alike: dict[tuple[object, ...], list[int]] = {}
        for number, row in enumerate(rows):
            how = row.decoding
            key = (how.samples, how.temperature, how.top_p, how.top_k, how.min_p, how.source_bias)
            alike.setdefault(key, []).append(number)
        self._groups: list[tuple[list[int], Any]] = []
        for numbers in alike.values():
            some = [rows[number] for number in numbers]
            seeds = [seed for row in some for seed in row.seeds]
            theirs = replace(asked, prompts=[row.prompt for row in some])
            self._groups.append((numbers, logits_processors(some[0].decoding, seeds, theirs)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        for numbers, processors in self._groups:
            if processors:
                scores[numbers] = processors(input_ids[numbers], scores[numbers])
        return scores


class _EachTakes(StoppingCriteria):
    """Hands each row its token, and ends those that are over."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, start: int) -> None:
        self._rows = [(row, replace(row.decoding, cancelled=None).criteria(tokenizer, start)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for number, ((row, criteria), token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            if not row.is_over:
                ids = input_ids[number : number + 1]
                row.take(token, lambda: bool(criteria) and bool(criteria(ids, scores, **kwargs)))  # noqa: B023 - at once
        return torch.tensor([row.is_over for row, _ in self._rows], device=input_ids.device)
