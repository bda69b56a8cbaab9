"""Time variants of one job against each other, in pairs.

Is        a loop that runs each variant once per round, in turning order, after a warm-up, between synchronisations.
Flow      record -> [timing] -> suite.
Change    how many rounds are run, what happens between them.
Not here  what is run -> suites/.
Holds     every round has one time of each variant, so ratios are taken within rounds; no round runs but whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.record import Spread

__all__ = ["AT_LEAST", "Pairs", "Variant", "paired", "synchroniser"]

AT_LEAST = 3
"""Rounds below which no spread can be told."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to do the job that needs something made for each run, outside the time taken.

    Attributes:
        run: What is timed; takes what `prepare` gave.
        prepare: Runs before each time, untimed.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Seconds of each variant in each round.

    Attributes:
        times: By variant, one for each round.
    """

    times: dict[str, list[float]]

    def seconds(self, name: str) -> Spread:
        """Sum up the times of one variant."""
        return Spread.of(self.times[name])

    def speedup(self, name: str, baseline: str) -> Spread:
        """How many times faster a variant is than the baseline: ratio of medians, spread over the rounds."""
        mine, other = self.times[name], self.times[baseline]
        ratios = [theirs / ours for ours, theirs in zip(mine, other, strict=True)]
        return Spread.of(ratios, median(other) / median(mine))


def paired(
    variants: Mapping[str, Callable[[], object] | Variant],
    *,
    synchronise: Callable[[], None],
    seconds: float,
    at_least: int = AT_LEAST,
    at_most: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> Pairs:
    """Time variants in alternation.

    Args:
        variants: What to run, by name.
        synchronise: Waits until the device has nothing left to do.
        seconds: Rounds are begun until so much time is gone, the warm-up not counted.
        at_least: Rounds that are run in any case.
        at_most: Rounds that are not exceeded.
        clock: Tells seconds.

    Returns:
        The times.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        _time(variant, synchronise, clock)
    begin, n_rounds = clock(), 0
    while n_rounds < at_least or (n_rounds < at_most and clock() - begin < seconds):
        order = list(variants.items())
        for name, variant in order if n_rounds % 2 == 0 else reversed(order):
            times[name].append(_time(variant, synchronise, clock))
        n_rounds += 1
    return Pairs(times)


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits for a device: nothing for a CPU, which returns only when it is done."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _time(
    variant: Callable[[], object] | Variant, synchronise: Callable[[], None], clock: Callable[[], float]
) -> float:
    if isinstance(variant, Variant):
        made = variant.prepare()
        synchronise()
        begin = clock()
        result = variant.run(made)
    else:
        synchronise()
        begin = clock()
        result = variant()
    synchronise()
    taken = clock() - begin
    del result  # freed outside the time taken
    return taken
