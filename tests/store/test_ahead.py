"""Reading ahead gives what reading one by one gives, in the same order, and begins nothing that nobody waits for."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from ultragist_rag.store.ahead import read_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 40])
def test_results_come_in_order(count: int) -> None:
    def read(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    assert list(read_ahead(read, range(count))) == [number * number for number in range(count)]


def test_a_single_thing_is_read_where_it_is_asked_for() -> None:
    assert list(read_ahead(lambda _: threading.current_thread(), [0])) == [threading.current_thread()]
    assert threading.current_thread() not in read_ahead(lambda _: threading.current_thread(), [0, 1])


def test_an_error_comes_in_its_turn() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise ValueError(number)
        return number

    results = read_ahead(read, range(40))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)


def test_what_nobody_waits_for_is_not_begun() -> None:
    begun = []
    with closing(read_ahead(lambda number: begun.append(number) or number, range(1000))) as results:
        assert next(results) == 0
    assert len(begun) < 20


def test_eight_are_under_way_at_a_time() -> None:
    together = threading.Barrier(8, timeout=20)

    def read(number: int) -> int:
        together.wait()
        return number

    assert list(read_ahead(read, range(16))) == list(range(16))
