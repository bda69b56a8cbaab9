"""Bootstrap intervals of means, shares and perplexities, all resamples at once.

Is        sums over resampled samples as arrays; every statistic is arithmetic on such sums.
Flow      [intervals] -> summary, compare.
Change    how many resamples there are, which interval is given.
Not here  statistics of any kind, one resample after the other -> metrics.py, whose draws these are.
Holds     equal seeds give equal intervals, and those of metrics.bootstrap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOTHING", "Array", "Interval", "interval", "ratio", "sums"]

Array = NDArray[np.float64]
Interval = tuple[float, float, float]
"""Value, lower and upper bound at 95 %."""

NOTHING: Interval = (float("nan"), float("nan"), float("nan"))
"""The interval of what was not measured."""

_DRAWS = 2000
_BLOCK = 1_000_000
"""Indices that are drawn from at once: what bounds the memory that resampling takes."""


def sums(*arrays: Array, seed: int | tuple[int, ...] = 0, draws: int = _DRAWS) -> list[Array]:
    """Sum arrays over the samples, and over each of many resamples of them.

    Args:
        arrays: Values of one length, at least 1; the same samples are drawn from each.
        seed: Of the generator.
        draws: Resamples.

    Returns:
        For each array the sums, shape (1 + draws,): that of the samples themselves first.
    """
    count = len(arrays[0])
    rng = np.random.default_rng(seed)
    rows: list[list[Array]] = [[np.array([array.sum()])] for array in arrays]
    at_once = max(1, _BLOCK // count)
    for start in range(0, draws, at_once):
        index = rng.integers(0, count, (min(at_once, draws - start), count))
        for row, array in zip(rows, arrays, strict=True):
            row.append(array[index].sum(axis=1))
    return [np.concatenate(row) for row in rows]


def ratio(above: Array, below: Array) -> Array:
    """Divide sums; NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def interval(statistic: Array) -> Interval:
    """Return the value of a statistic with its 95 % percentile interval.

    Args:
        statistic: Of the samples themselves first, then of the resamples.

    Returns:
        Value, lower and upper bound; all NaN if the value is.
    """
    if np.isnan(statistic[0]) or np.isnan(statistic[1:]).all():
        return NOTHING
    low, high = np.nanquantile(statistic[1:], (0.025, 0.975))
    return float(statistic[0]), float(low), float(high)
