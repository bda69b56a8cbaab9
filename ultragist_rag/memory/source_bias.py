"""Hold an answer to the words of its documents while it is decoded.

Is        a logits processor, and the search of the end of an answer in the tokens of its prompt.
Flow      memory, spans, text -> [source_bias] -> decoding.
Paper     the pointer-generator, arXiv 1704.04368, learns to mix copying into the scores; here it is the longest match
          that says what is copied and how surely, as in the infini-gram, arXiv 2401.17377.
Change    what counts as going on as a source does, when an answer may end.
Not here  where memories get their tokens from -> compress.py; the setting -> decoding.py.
Holds     a row in a batch is changed as it is alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from ultragist_rag.config import check_source_bias
from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.spans import is_of_word
from ultragist_rag.memory.text import TextCodec

__all__ = ["Asked", "SourceBias", "check_source_ids", "following"]

_TAIL = 8  # tokens that show whether a word goes on: a character may take several
_UNKNOWN = "stored by an older version, with keep_source=False, or of more than 2,000,000 tokens"
_DECODED_PLAINLY = (
    "the model holds answers to the words of their prompts, but not to a prompt with a memory that does not know its "
    f"tokens ({_UNKNOWN}): such answers are decoded plainly. Compress its text again, or pass source_bias=0 if that is "
    "meant."
)
_PART = "\ufffd"  # what a tokenizer decodes a part of a character to


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is decoded.

    Attributes:
        prompts: Of ids and memories.
        start: First column of the answers.
        ends: Tokens that end an answer.
        tokenizer: The tokenizer, or None.
        source_bias: Of the engine, for answers whose settings name none.
    """

    prompts: Sequence[Sequence[Tensor | GistMemory]]
    start: int
    ends: Sequence[int]
    tokenizer: Any
    source_bias: float = 0.0

    def __post_init__(self) -> None:
        """Check the bias, which anybody may have set."""
        check_source_bias(self.source_bias)


def check_source_ids(prompts: Sequence[Sequence[Tensor | GistMemory]]) -> None:
    """Refuse prompts whose memories do not know their tokens.

    Args:
        prompts: Of ids and memories.

    Raises:
        InputError: If one does not.
    """
    if not all(map(_is_known, prompts)):
        raise InputError(
            f"source_bias needs the tokens of every memory of the prompt, but one has none: it was {_UNKNOWN}. Delete "
            "it there and compress its text again, or leave source_bias out."
        )


def following(source: NDArray[np.int64], answer: Sequence[int]) -> tuple[NDArray[np.int64], int]:
    """Find how a source goes on where it agrees longest with the end of an answer.

    Args:
        source: Token ids.
        answer: Token ids of the answer so far.

    Returns:
        Token ids that stand behind the longest match, without repetition, and the tokens that match; 0 if the last
        token stands nowhere.

    Example:
        >>> following(np.array([5, 6, 7, 9, 6, 8]), [5, 6])
        (array([7]), 2)
    """
    places, matched, length = np.arange(len(source)), np.zeros(0, np.int64), 0
    for back, token in enumerate(reversed(answer)):
        places = places[places >= back]
        places = places[source[places - back] == token]
        if not len(places):
            break
        matched, length = places, back + 1
    return np.unique(source[matched[matched + 1 < len(source)] + 1]), length


class SourceBias(LogitsProcessor):
    """Lowers the scores of tokens that do not go on as the prompt does, once the end of the answer stands in it."""

    def __init__(self, asked: Asked, bias: float, stop: Sequence[str] = ()) -> None:
        """Gather the tokens of prompts.

        Args:
            asked: What is decoded; for each prompt as many rows. Answers to a prompt are left as they are if one of its
                memories does not know its tokens.
            bias: How much is taken from the scores, which are logarithms of probabilities, for each matching token.
            stop: Texts that end an answer.
        """
        self._asked, self._bias = asked, bias
        known = [_is_known(prompt) for prompt in asked.prompts]
        if not all(known):
            warnings.warn(_DECODED_PLAINLY, stacklevel=2)
        nothing = np.zeros(0, np.int64)
        self._sources = [
            _ids_of(one) if is_known else nothing for one, is_known in zip(asked.prompts, known, strict=True)
        ]
        self._codec = None if asked.tokenizer is None else TextCodec.of(asked.tokenizer)
        firsts = [self._codec.encode(text, first=False)[:1].tolist() for text in stop] if self._codec else []
        self._ends = [*asked.ends, *(token for first in firsts for token in first)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Change the scores of each row."""
        each = len(input_ids) // len(self._sources)  # answers or beams of a prompt stand side by side
        changed = scores.clone()
        for row, answer in enumerate(input_ids[:, self._asked.start :].tolist()):
            behind, length = following(self._sources[row // each], answer)
            if len(behind):
                ends = [] if self._is_inside_word(answer[-_TAIL:], behind.tolist()) else self._ends
                free = torch.tensor([*behind.tolist(), *ends], dtype=torch.long, device=scores.device)
                changed[row] -= self._bias * length
                changed[row, free] = scores[row, free]
        return changed

    def _is_inside_word(self, tail: Sequence[int], behind: Sequence[int]) -> bool:
        """Whether a word goes on behind the last tokens, wherever they stand: no answer ends there."""
        codec = self._codec
        if codec is None:
            return False
        text = codec.decode(tail)
        if text.endswith(_PART):
            return True
        onward = (codec.decode([*tail, token])[len(text) :] for token in behind)
        return is_of_word(text[-1:]) and all(part[:1] == _PART or is_of_word(part[:1]) for part in onward)


def _is_known(prompt: Sequence[Tensor | GistMemory]) -> bool:
    """Whether all memories of a prompt know their tokens."""
    return not any(isinstance(piece, GistMemory) and piece.source_ids is None for piece in prompt)


def _ids_of(prompt: Sequence[Tensor | GistMemory]) -> NDArray[np.int64]:
    parts = [piece.source_ids if isinstance(piece, GistMemory) else piece for piece in prompt]
    return np.concatenate([ids.cpu().numpy().astype(np.int64) for ids in parts if ids is not None])
