"""Turn samples into token ids with a weight for every prediction.

Is        integer work on one tokenizer: `Sample` in, `Row` out.
Flow      samples -> [batches] -> loop.
Change    how a prompt is laid out for training: separators, question and answer wording.
Holds     the raw pieces of a row, put in order, are exactly the ids that the front door makes of the same prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ultragist_rag.training.samples import Sample

SEPARATORS = ("\n\n", "\n\n", "\n\n", "\n", "\n\n---\n\n")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt: documents, separators between them, and the turns behind them, as token ids.

    `weights[i]` is the loss weight of predicting `turns[i]`; `separators[i]` stands behind document i.
    """

    documents: tuple[tuple[int, ...], ...]
    separators: tuple[tuple[int, ...], ...]
    turns: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def n_tokens(self) -> int:
        """All tokens of the row without the lead token."""
        return sum(map(len, self.documents)) + sum(map(len, self.separators)) + len(self.turns)


class RowMaker:
    """Encodes samples with one tokenizer."""

    def __init__(self, tokenizer: Any, eos: str) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.convert_tokens_to_ids(eos)
        self._newline = self._encode("\n")

    def row(self, sample: Sample, rng: random.Random) -> Row:
        """The row of a sample; a sample without questions is continued by the second half of its text."""
        documents = [self._encode(text) for text in sample.documents]
        if not sample.pairs:
            return self._continued(documents)
        separator = self._encode(rng.choice(SEPARATORS))
        turns, weights = self._turns(sample.pairs)
        separators = (separator,) * (len(documents) - 1) + (self._encode("\n\n"),)
        return Row(tuple(documents), separators, turns, weights)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _turns(self, pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        ids: list[int] = []
        weights: list[float] = []
        for question, answer in pairs:
            asked = self._encode(f"Question: {question}\nAnswer:")
            told = (*self._encode(f" {answer}"), self._eos)
            ids += [*asked, *told, *self._newline]
            weights += [0.0] * len(asked) + [1.0] * len(told) + [0.0] * len(self._newline)
        return tuple(ids), tuple(weights)

    def _continued(self, documents: Sequence[tuple[int, ...]]) -> Row:
        text = documents[0]
        cut = len(text) // 2
        return Row((text[:cut],), ((),), text[cut:], (1.0,) * (len(text) - cut))
