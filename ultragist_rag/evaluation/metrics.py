"""Exact match with SQuAD normalisation, and bootstrap intervals.

Is        pure functions over strings and arrays of scores.
Paper     SQuAD, arXiv 1606.05250 (normalisation of its official script).
Holds     equal seeds give equal intervals.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
T = TypeVar("T")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces.

    Example:
        >>> normalise("The  Rio Paraguay, 90 m.")
        'rio paraguay 90 m'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation, else 0.0."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def bootstrap(
    statistic: Callable[..., float], *scores: Scores, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of paired scores with its 95 % percentile interval over resampled questions.

    Args:
        statistic: Takes the arrays, returns a number.
        scores: Arrays of one length; the same questions are drawn from each.
        draws: Resamples.
        seed: Of the generator.

    Returns:
        Value, lower and upper bound.
    """
    value = statistic(*scores)
    if np.isnan(value):
        return value, value, value
    rng = np.random.default_rng(seed)
    count = len(scores[0])
    drawn = [statistic(*(array[index] for array in scores)) for index in rng.integers(0, count, (draws, count))]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def mean(scores: Scores) -> float:
    """Mean score."""
    return float(scores.mean())


def retention(scores: Scores, full: Scores) -> float:
    """Share of the full text's score that is kept; NaN if the full text answers nothing."""
    total = full.sum()
    return float(scores.sum() / total) if total else float("nan")


def difference(scores: Scores, others: Scores) -> float:
    """Mean score above that of others, on the same questions."""
    return float((scores - others).mean())


def perplexity(nats: Scores, tokens: Scores) -> float:
    """Perplexity of all tokens together, from the nats and the number of tokens of each text."""
    return float(np.exp(nats.sum() / tokens.sum()))


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items at even distances."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
