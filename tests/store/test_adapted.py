"""LangChain's byte stores as places: what they do not tell is found out, what they raise is told."""

import threading
import time

import pytest
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import InMemoryByteStore

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.base import GIST, SOURCE, KeyValueStore, open_bytes
from ultragist_rag.store.keys import ENVIRONMENT

INDEX = "ultragist-index.json"


def key(number, ending=GIST, folder="ns"):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{folder}/{digits[number // 32]}{digits[number % 32]:a<25}{ending}"


class Counting(InMemoryByteStore):
    """Counts what is read, and fails when it is told to."""

    def __init__(self):
        super().__init__()
        self.read = []
        self.error = None
        self.allowed = None

    def mget(self, keys):
        self._fail()
        self.read += [key for key in keys if key != INDEX]
        return super().mget(keys)

    def mset(self, key_value_pairs):
        self._fail()
        for number, (name, data) in enumerate(key_value_pairs):
            if self.allowed == number:
                super().mset([(name, data[:2])])
                raise OSError("no space left on device")
            super().mset([(name, data)])

    def mdelete(self, keys):
        self._fail()
        super().mdelete(keys)

    def yield_keys(self, *, prefix=None):
        self._fail()
        return super().yield_keys(prefix=prefix)

    def _fail(self):
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("make", [InMemoryByteStore, lambda: LocalFileStore("unused")])
def test_stores_of_langchain_have_what_is_needed(make):
    assert isinstance(make(), KeyValueStore)


def test_what_is_no_byte_store_is_refused():
    with pytest.raises(InputError, match="a dict is no place"):
        open_bytes({})


def test_a_store_is_found_again_by_whoever_opens_it(make_memory, same):
    store = InMemoryByteStore()
    marker = GistStore.open(store, secret="a secret of the tests").put(make_memory(), "text")
    again = GistStore.open(store, secret="a secret of the tests")
    assert same(again.get(marker), make_memory())
    assert again.source(marker).text == "text"
    assert GistStore.open(store, secret="another secret of the tests").find_source(marker) is None


def test_it_needs_a_secret(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(StoreError, match="pass secret="):
        GistStore.open(InMemoryByteStore())


def test_values_of_others_are_left_alone():
    store = InMemoryByteStore()
    store.mset([("somebody's", bytes(1000)), ("ns/notes.txt", bytes(1000))])
    place = open_bytes(store, 150)
    for number in range(3):
        place.put({key(number): bytes(100)})
    assert list(place.entries("ns")) == [(key(2), 100)]
    assert store.mget(["somebody's", "ns/notes.txt"]) == [bytes(1000)] * 2


def test_sizes_are_read_once_and_then_known_or_taken_from_the_index():
    store = Counting()
    free = open_bytes(store)
    free.put({key(0): bytes(10), key(1): bytes(20)})
    store.read.clear()
    for _ in range(3):
        assert free.usage().n_bytes == 30
    assert store.read == []
    another = open_bytes(store)
    for _ in range(3):
        assert another.usage().n_bytes == 30
    assert sorted(store.read) == [key(0), key(1)]
    open_bytes(store, 1000).put({key(2): bytes(5)})
    store.read.clear()
    assert open_bytes(store, 1000).usage().n_bytes == 35
    assert store.read == []


def test_what_is_replaced_without_a_bound_is_not_counted_by_what_the_index_tells():
    place = open_bytes(InMemoryByteStore())
    place.put({key(0): bytes(100)}, quota=500)
    place.put({key(0): bytes(10), key(1): bytes(20)})
    assert place.usage().n_bytes == 30
    place.put({key(2): bytes(470)}, quota=500)
    assert dict(place.entries("ns")) == {key(0): 10, key(1): 20, key(2): 470}


@pytest.mark.parametrize(
    "error", [ConnectionError("gone"), RuntimeError("closed"), KeyError("x"), PermissionError("no")]
)
def test_whatever_it_raises_is_a_store_error_and_it_works_again(error):
    store = Counting()
    place = open_bytes(store, 100)
    place.put({key(0): b"x"})
    store.error = error
    calls = (
        lambda: place.get(key(0)),
        lambda: place.head(key(0), 1),
        lambda: place.put({key(1): b"y"}),
        lambda: place.delete((key(0),)),
        lambda: place.contains(key(0)),
        lambda: list(place.entries("ns")),
        place.usage,
    )
    for call in calls:
        with pytest.raises(StoreError, match=f"Counting failed: {type(error).__name__}"):
            call()
    store.error = None
    assert (place.get(key(0)), place.get(key(1))) == (b"x", None)


def test_threads_with_stores_of_their_own_on_one_object_take_turns():
    class Careless(InMemoryByteStore):
        """Notices two threads at the same moment."""

        busy = 0

        def __getattribute__(self, name):
            if name not in {"mget", "mset", "mdelete", "yield_keys"}:
                return super().__getattribute__(name)
            call = super().__getattribute__(name)

            def alone(*args, **kwargs):
                assert self.busy == 0
                self.busy += 1
                time.sleep(0.0005)
                found = call(*args, **kwargs)
                found = iter(list(found)) if name == "yield_keys" else found
                self.busy -= 1
                return found

            return alone

    store = Careless()
    places = [open_bytes(store, 3000) for _ in range(8)]
    failures = []

    def work(number):
        try:
            for step in range(5):
                places[number].put({key(number * 5 + step): bytes(100)})
                places[number].get(key(step))
                places[number].usage()
        except BaseException as error:  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_what_another_thread_replaces_while_sizes_are_counted_is_not_counted_by_its_old_size(monkeypatch):
    place = open_bytes(InMemoryByteStore(), 120)
    place.put({key(0): bytes(90), key(1): bytes(10)})
    replacing = threading.Thread(target=place.put, args=({key(1): bytes(100)},))
    read_index = place._read_index

    def read_and_wait():
        index = read_index()
        monkeypatch.undo()
        replacing.start()
        replacing.join(0.2)  # over at once, or kept waiting until all is counted
        return index

    monkeypatch.setattr(place, "_read_index", read_and_wait)
    assert place.usage().n_bytes == 100
    replacing.join()
    assert dict(place.entries("ns")) == {key(1): 100}


@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("max_bytes", [None, 1000])
def test_a_put_that_stops_half_way_leaves_nothing_new(allowed, max_bytes):
    store = Counting()
    place = open_bytes(store, max_bytes)
    store.allowed = allowed
    with pytest.raises(StoreError, match="no space left"):
        place.put({key(0, SOURCE): b"text", key(0): b"memory"})
    assert list(place.entries("ns")) == []
    store.allowed = None
    place.put({key(0, SOURCE): b"text", key(0): b"memory"})
    assert dict(place.entries("ns")) == {key(0, SOURCE): 4, key(0): 6}
