"""What is too old is gone, in every kind of store, whoever asks."""

import math

import pytest

from ultragist_rag.errors import GistNotFoundError, InputError
from ultragist_rag.store import GistStore, shelf
from ultragist_rag.store.base import SOURCE
from ultragist_rag.store.refs import parse

SECRET = "a secret of the tests"


@pytest.fixture
def clock(monkeypatch):
    """The time in a list of one number."""
    now = [1_000_000.0]
    monkeypatch.setattr(shelf, "_now", lambda: now[0])
    return now


@pytest.fixture
def brief(url, clock):
    return GistStore.open(url, secret=SECRET, ttl=60)


def files(root, store):
    return sum(1 for _ in store._shelf.place.entries(store._shelf.folder))


def test_after_its_time_a_memory_and_its_source_are_gone(brief, clock, engine, tmp_path):
    asks = [
        lambda marker: brief.get(marker),
        lambda marker: brief.get(marker, engine),
        lambda marker: brief.source(marker),
        lambda marker: brief.resolve(engine, marker),
        lambda marker: brief.expand_markers(marker),
    ]
    for number, ask in enumerate(asks):
        (marker,) = brief.get_or_compress(engine, [f"text {number}"])
        clock[0] += 59
        ask(marker)
        clock[0] += 1
        with pytest.raises(GistNotFoundError):
            ask(marker)
        assert files(tmp_path, brief) == 0  # removed when met


def test_what_is_there_is_what_is_not_too_old(brief, clock, engine, tmp_path):
    (old,) = brief.get_or_compress(engine, ["old"])
    clock[0] += 40
    (new,) = brief.get_or_compress(engine, ["new"])
    assert brief.get_or_compress(engine, ["old"]) == [old]  # a hit is no put
    clock[0] += 30
    assert (old in brief, new in brief) == (False, True)
    assert (list(brief), len(brief)) == ([new], 1)
    assert brief.find("old", engine) is None
    assert brief.find_source(old) is None
    stats = brief.stats()
    assert (stats.n_memories, stats.n_sources) == (1, 1)
    engine.batches.clear()
    assert brief.get_or_compress(engine, ["old", "new"]) == [old, new]
    assert engine.batches == [["old"]]
    clock[0] += 31
    assert list(brief) == [old]


def test_iteration_removes_sources_whose_memory_was_evicted(brief, clock, engine, tmp_path):
    (marker,) = brief.get_or_compress(engine, ["old"])
    brief._shelf.place.delete((brief._shelf.key(parse(marker), ".gist"),))
    clock[0] += 60
    assert list(brief) == []
    assert files(tmp_path, brief) == 0


def test_the_time_survives_reopening_and_reading(url, clock, engine):
    keeper = GistStore.open(url, secret=SECRET)  # a store in memory lives as long as someone holds it
    marker = keeper.put(engine.one("text"), text="text")
    assert keeper.source(marker).stored == clock[0]
    clock[0] += 100
    keeper.get(marker)
    assert marker in GistStore.open(url, secret=SECRET, ttl=101)
    assert marker not in GistStore.open(url, secret=SECRET, ttl=100)
    assert marker not in keeper


def test_making_an_evicted_memory_again_does_not_make_it_younger(brief, clock, engine):
    (marker,) = brief.get_or_compress(engine, ["text"])
    clock[0] += 50
    brief._shelf.place.delete((brief._shelf.key(parse(marker), ".gist"),))
    brief.get(marker, engine)
    clock[0] += 10
    with pytest.raises(GistNotFoundError):
        brief.get(marker, engine)


def test_putting_again_begins_anew(brief, clock, engine):
    marker = brief.put(engine.one("text"), text="text")
    clock[0] += 50
    brief.put(engine.one("text"), text="text")
    clock[0] += 50
    assert brief.source(marker).text == "text"


def test_asking_how_old_something_is_is_no_use_of_it(url, clock, engine):
    size = GistStore.open("memory://", secret=SECRET)
    size.put(engine.one("text 0"), text="text 0")
    store = GistStore.open(f"{url}-bounded", secret=SECRET, ttl=1e6, max_bytes=2 * size.stats().n_bytes + 700)
    first, second = (store.put(engine.one(f"text {number}"), text=f"text {number}") for number in range(2))
    assert first in store
    store.put(engine.one("text 2"), text="text 2")
    assert (first in store, second in store) == (False, True)


def test_without_sources_too(url, clock, engine):
    store = GistStore.open(url, secret=SECRET, ttl=60, keep_source=False)
    marker = store.put(engine.one("text"), text="text")
    clock[0] += 61
    assert marker not in store


def test_a_file_that_does_not_say_its_time_counts_as_old(brief, clock, engine, monkeypatch):
    marker = brief.put(engine.one("text"), text="text")
    place = brief._shelf.place
    key = brief._shelf.key(parse(marker), SOURCE)
    place.put({key: place.get(key).replace(b'"stored"', b'"others"')})
    assert brief.find_source(marker) is None
    assert marker in brief


@pytest.mark.parametrize("ttl", [0, -1, True, math.nan, math.inf, "60"])
def test_a_time_must_be_a_number_of_seconds(ttl):
    with pytest.raises((InputError, TypeError), match="ttl"):
        GistStore.open("memory://", ttl=ttl)
