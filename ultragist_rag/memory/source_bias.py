"""Hold an answer to the words of its documents while it is decoded.

Is        a logits processor, and the search of the last tokens of an answer in the tokens of its prompt.
Flow      memory -> [source_bias] -> decoding.
Change    what counts as going on as a source does.
Not here  where memories get their tokens from -> compress.py; the setting -> decoding.py.
Paper     the pointer-generator, arXiv 1704.04368, learns to mix copying into the scores; here it is the longest match
          that says what is copied, as in the infini-gram, arXiv 2401.17377.
Holds     a row in a batch is changed as it is alone. Tokens that end the answer are never made less likely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory

__all__ = ["SourceBias", "following"]


def following(source: NDArray[np.int64], answer: Sequence[int]) -> NDArray[np.int64] | None:
    """Find how a source goes on where it agrees longest with the end of an answer.

    Args:
        source: Token ids.
        answer: Token ids of the answer so far.

    Returns:
        Token ids that stand behind the longest match, without repetition; None if the last token stands nowhere.

    Example:
        >>> following(np.array([5, 6, 7, 9, 6, 8]), [5, 6]), following(np.array([5]), [4])
        (array([7]), None)
    """
    places, matched = np.arange(len(source)), None
    for back, token in enumerate(reversed(answer)):
        places = places[places >= back]
        places = places[source[places - back] == token]
        if not len(places):
            break
        matched = places
    if matched is None:
        return None
    return np.unique(source[matched[matched + 1 < len(source)] + 1])


class SourceBias(LogitsProcessor):
    """Lowers the scores of tokens that do not go on as the prompt does, once the end of the answer stands in it."""

    def __init__(
        self, prompts: Sequence[Sequence[Tensor | GistMemory]], bias: float, start: int, ends: Sequence[int]
    ) -> None:
        """Gather the tokens of prompts.

        Args:
            prompts: Prompts of ids and memories.
            bias: How much is taken from the scores, which are logarithms of probabilities.
            start: First column of the answers.
            ends: Tokens that end an answer.

        Raises:
            InputError: If a memory does not know its tokens.
        """
        self._sources = [np.concatenate([_ids_of(piece) for piece in prompt]) for prompt in prompts]
        self._bias, self._start, self._ends = bias, start, list(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Change the scores of each row."""
        each = len(input_ids) // len(self._sources)  # answers or beams of a prompt stand side by side
        changed = scores.clone()
        for row, answer in enumerate(input_ids[:, self._start :].tolist()):
            behind = following(self._sources[row // each], answer)
            if behind is not None:
                free = torch.tensor([*behind.tolist(), *self._ends], dtype=torch.long, device=scores.device)
                changed[row] -= self._bias
                changed[row, free] = scores[row, free]
        return changed


def _ids_of(piece: Tensor | GistMemory) -> NDArray[np.int64]:
    ids = piece.source_ids if isinstance(piece, GistMemory) else piece
    if ids is None:
        raise InputError(
            "source_bias needs the tokens of every memory of the prompt, but one has none: it was stored by an older "
            "version or with keep_source=False. Compress its text again, or leave source_bias out."
        )
    return ids.cpu().numpy().astype(np.int64)
