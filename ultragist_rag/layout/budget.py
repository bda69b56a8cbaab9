"""Divide a number of slots among documents by choosing a ratio for each.

Is        pure functions of lengths, weights and ratios; integers only. No torch.
Flow      errors -> [layout] -> condense.
Paper     none; LongLLMLingua (arXiv 2310.06839) has the idea of giving better documents more room.
Change    how a budget is divided.
Not here  where weights and lengths come from -> condense.py.
Holds     the slots of all documents never exceed the budget; of two equal documents the heavier gets no fewer slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from ultragist_rag.errors import InputError

__all__ = ["plan_ratios", "slots_of"]


def slots_of(length: int, ratio: int, window: int) -> int:
    """Count the slots of a document: a last window that is not full has a gist for the rest, too.

    Args:
        length: Tokens of the document.
        ratio: Raw tokens per gist.
        window: Raw tokens that are condensed in one step. Where windows overlap, the stride: it counts no fewer.

    Returns:
        Slots of its memory.

    Example:
        >>> slots_of(100, ratio=8, window=64)
        13
    """
    return length // window * -(-window // ratio) + -(-(length % window) // ratio)


def plan_ratios(
    lengths: Sequence[int],
    slots: int,
    ratios: Sequence[int],
    window: int,
    weights: Sequence[int],
    *,
    taken: int = 0,
) -> list[int]:
    """Give every document a ratio so that all fit, the heavier ones more exactly.

    All begin with the highest ratio. Then, as long as one fits, the document that would have fewest slots for its
    weight takes the next lower ratio; of several the first.

    Args:
        lengths: Tokens of each document.
        slots: Slots that all may take together.
        ratios: Ratios to choose from.
        window: Raw tokens that are condensed in one step.
        weights: Importance of each document, at least 1.
        taken: Slots of the budget that memories of other documents take already.

    Returns:
        A ratio for each document.

    Raises:
        InputError: If they do not fit even at the highest ratio, or an argument does not fit.

    Example:
        >>> plan_ratios([256, 256, 256], slots=160, ratios=(2, 4, 8), window=64, weights=(3, 2, 1))
        [4, 4, 8]
    """
    _check(lengths, ratios, weights)
    steps = sorted(set(ratios), reverse=True)
    sizes = [[slots_of(length, ratio, window) for ratio in steps] for length in lengths]
    least = taken + sum(row[0] for row in sizes)
    left = slots - least
    if left < 0:
        raise InputError(
            f"{len(lengths)} documents take at least {least} slots at ratio {steps[0]} ({taken} of them taken "
            f"already), but the budget is {slots}. Raise slots to {least}, pass fewer, or allow a higher ratio."
        )
    at = [0] * len(lengths)
    open_ones = set(range(len(lengths)))
    while open_ones:
        best = min(open_ones, key=lambda i: (Fraction(sizes[i][min(at[i] + 1, len(steps) - 1)], weights[i]), i))
        cost = sizes[best][at[best] + 1] - sizes[best][at[best]] if at[best] + 1 < len(steps) else left + 1
        if cost > left:  # also what a document leaves behind only shrinks, so that it will not fit later
            open_ones.remove(best)
        else:
            at[best], left = at[best] + 1, left - cost
    return [steps[step] for step in at]


def _check(lengths: Sequence[int], ratios: Sequence[int], weights: Sequence[int]) -> None:
    if len(lengths) != len(weights):
        raise InputError(f"{len(weights)} weights for {len(lengths)} documents: give one each.")
    for name, values in (("ratio", ratios), ("weight", weights)):
        wrong = [value for value in values if value < 1]
        if wrong or (name == "ratio" and not values):
            raise InputError(f"{name} {wrong[:1] or 'is missing'}: give whole numbers of at least 1.")
