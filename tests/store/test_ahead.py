"""Reading ahead gives what reading one by one gives, in the same order and context, and begins nothing in vain."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path

import pytest

from ultragist_rag.errors import GistNotFoundError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import GistStore
from ultragist_rag.store.ahead import read_ahead
from ultragist_rag.store.shelf import Shelf


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 40])
def test_results_come_in_order(count: int) -> None:
    def read(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        return number * number

    assert list(read_ahead(read, range(count), 8)) == [number * number for number in range(count)]


def test_a_single_thing_is_read_where_it_is_asked_for() -> None:
    assert list(read_ahead(lambda _: threading.current_thread(), [0], 8)) == [threading.current_thread()]
    assert threading.current_thread() not in read_ahead(lambda _: threading.current_thread(), [0, 1], 8)


def test_with_one_reader_all_is_read_where_it_is_asked_for() -> None:
    here = threading.current_thread()
    assert list(read_ahead(lambda _: threading.current_thread(), range(5), 1)) == [here] * 5


def test_what_is_read_sees_the_context_of_who_asks() -> None:
    tenant = ContextVar("tenant", default="nobody")
    tenant.set("ada")
    assert list(read_ahead(lambda _: tenant.get(), range(20), 4)) == ["ada"] * 20


def test_a_thread_that_outlives_the_main_one_can_still_read() -> None:
    script = """
import threading
from ultragist_rag.store.ahead import read_ahead

def serve():
    threading.main_thread().join()
    print(list(read_ahead(str, range(12), 8)))

threading.Thread(target=serve).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([str(number) for number in range(12)])


def test_an_error_comes_in_its_turn() -> None:
    def read(number: int) -> int:
        if number == 3:
            raise ValueError(number)
        return number

    results = read_ahead(read, range(40), 8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(results)


def test_what_nobody_waits_for_is_not_begun() -> None:
    begun = []
    with closing(read_ahead(lambda number: begun.append(number) or number, range(1000), 8)) as results:
        assert next(results) == 0
    assert len(begun) < 20


def test_eight_are_under_way_at_a_time() -> None:
    together = threading.Barrier(8, timeout=20)

    def read(number: int) -> int:
        together.wait()
        return number

    assert list(read_ahead(read, range(16), 8)) == list(range(16))


def test_memories_of_a_folder_are_read_in_threads_and_those_of_other_places_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_memory: Callable[..., GistMemory]
) -> None:
    real, threads = Shelf._read, set()
    monkeypatch.setattr(Shelf, "_read", lambda *given: threads.add(threading.current_thread().name[:9]) or real(*given))
    for place, named in ((tmp_path / "gists", {"ultragist"}), ("memory://", {"MainThrea"})):
        threads.clear()
        store = GistStore.open(place, secret="a secret of the tests")
        markers = [store.put(make_memory(number), text=str(number)) for number in range(5)]
        store.get_many(markers)
        assert threads == named


def test_what_a_tier_keeps_or_time_has_taken_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_memory: Callable[..., GistMemory], same: Callable[..., bool]
) -> None:
    store = GistStore.open(tmp_path, secret="a secret of the tests", ram_bytes=10**9, ttl=100.0)
    memories = [make_memory(number) for number in range(6)]
    markers = [store.put(memory, text=str(number)) for number, memory in enumerate(memories)]
    store.get_many(markers[::2])
    found = store.get_many(markers)
    assert all(map(same, found, memories))
    assert store.stats().tiers["ram"].n_memories == 6
    monkeypatch.setattr("ultragist_rag.store.shelf._now", lambda: time.time() + 200)
    with pytest.raises(GistNotFoundError):
        store.get_many(markers)
