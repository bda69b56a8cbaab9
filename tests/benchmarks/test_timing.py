from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.timing import Pairs, Variant, paired


class Recorder:
    """A clock that only the variants move, and a list of what happened."""

    def __init__(self) -> None:
        self.now, self.events = 0.0, list[str]()

    def job(self, name: str, seconds: float) -> Callable[..., None]:
        def run(*_: object) -> None:
            self.events.append(name)
            self.now += seconds

        return run

    def times(self, **settings: float) -> Pairs:
        variants = {
            "a": self.job("a", 2.0),
            "b": Variant(run=self.job("b", 5.0), prepare=self.job("prepare", 100.0)),
        }
        synchronise = self.job("sync", 0.0)
        return paired(variants, synchronise=synchronise, clock=lambda: self.now, **settings)


def test_variants_alternate_and_each_stands_between_synchronisations() -> None:
    recorder = Recorder()
    pairs = recorder.times(seconds=0.0)
    a, b = ["sync", "a", "sync"], ["prepare", "sync", "b", "sync"]
    assert recorder.events == [*a, *b, *a, *b, *b, *a, *a, *b]  # a warm-up, then three rounds in turning order
    assert pairs.times == {"a": [2.0] * 3, "b": [5.0] * 3}  # what prepares is not timed
    assert pairs.speedup("a", "b").median == 2.5
    assert pairs.seconds("b").n == 3


@pytest.mark.parametrize(("seconds", "at_most", "rounds"), [(0.0, 50, 3), (107.0 * 5, 50, 5), (1e9, 4, 4)])
def test_rounds_fill_the_time_between_two_bounds(seconds: float, at_most: int, rounds: int) -> None:
    assert Recorder().times(seconds=seconds, at_most=at_most).seconds("a").n == rounds


def test_ratios_are_taken_within_rounds() -> None:
    pairs = Pairs({"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]})
    found = pairs.speedup("a", "b")
    assert (found.median, found.least, found.most) == (2.0, 1.0, 3.0)
