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

import numpy as np

from ultragist_rag.memory.spans import code_words
from ultragist_rag.training.samples import Sample

SEPARATORS = ("\n\n", "\n\n", "\n\n", "\n", "\n\n---\n\n")
HEADS = (
    "Answer from the documents.\n\n",
    "Use the following documents to answer the question.\n\n",
    "Answer the question from the context below.\n\n",
    "Context:\n",
    "You are a helpful assistant.\n\n",
)
_QUESTION = "Question"
_HEADED = 0.25  # share of prompts with an instruction in front of the documents


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt: documents, separators between them, and the turns behind them, as token ids.

    `weights[i]` is the loss weight of predicting `turns[i]`; `separators[i]` stands behind document i; `exact[i]` are
    the places in document i of tokens that may be kept verbatim, if there are any; `head` stands in front of all.
    """

    documents: tuple[tuple[int, ...], ...]
    separators: tuple[tuple[int, ...], ...]
    turns: tuple[int, ...]
    weights: tuple[float, ...]
    exact: tuple[tuple[int, ...], ...] = ()
    head: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """All tokens of the row without the lead token."""
        return len(self.head) + sum(map(len, self.documents)) + sum(map(len, self.separators)) + len(self.turns)


class RowMaker:
    """Encodes samples with one tokenizer."""

    def __init__(self, tokenizer: Any, eos: str) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.convert_tokens_to_ids(eos)
        self._newline = self._encode("\n")
        # A tokenizer may cut line breaks otherwise where text follows than where nothing or a memory does.
        self._before_question = self._encode(f"\n\n{_QUESTION}")[: -len(self._encode(_QUESTION))]

    def row(self, sample: Sample, rng: random.Random, continued_weight: float = 1.0) -> Row:
        """The row of a sample; a sample without questions is continued by the second half of its text."""
        documents = [self._encode(text) for text in sample.documents]
        if not sample.pairs:
            return self._continued(documents, continued_weight)
        separator = self._encode(rng.choice(SEPARATORS))
        turns, weights = self._turns(sample.pairs)
        separators = (separator,) * (len(documents) - 1) + (self._before_question,)
        exact = tuple(self._exact(text) for text in sample.documents) if sample.exact else ()
        head = self._encode(rng.choice(HEADS)) if rng.random() < _HEADED else ()
        return Row(tuple(documents), separators, turns, weights, exact, head)

    def _exact(self, text: str) -> tuple[int, ...]:
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return tuple(np.flatnonzero(code_words(text, offsets)).tolist())

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _turns(self, pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        ids: list[int] = []
        weights: list[float] = []
        for question, answer in pairs:
            asked = self._encode(f"{_QUESTION}: {question}\nAnswer:")
            told = (*self._encode(f" {answer}"), self._eos)
            ids += [*asked, *told, *self._newline]
            weights += [0.0] * len(asked) + [1.0] * len(told) + [0.0] * len(self._newline)
        return tuple(ids), tuple(weights)

    def _continued(self, documents: Sequence[tuple[int, ...]], weight: float) -> Row:
        text = documents[0]
        cut = len(text) // 2
        return Row((text[:cut],), ((),), text[cut:], (weight,) * (len(text) - cut))
