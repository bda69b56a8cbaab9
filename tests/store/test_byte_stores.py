"""What every byte store promises."""

import sys
import threading
from importlib import import_module

import pytest
from langchain_core.stores import InMemoryByteStore

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store.base import GIST, RECORD, SCHEMES, SOURCE, ByteStore, open_bytes


def key(number, ending=GIST, folder="ns"):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return f"{folder}/{digits[number // 32]}{digits[number % 32]:a<25}{ending}"


def bytes_in(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and path.suffix != ".json")


def open_local_files(folder, max_bytes):
    from langchain_classic.storage import LocalFileStore

    return open_bytes(LocalFileStore(folder), max_bytes)


OPENERS = {
    "memory": lambda _, max_bytes: open_bytes("memory://", max_bytes),
    "file": lambda request, max_bytes: open_bytes(request.getfixturevalue("tmp_path") / "bytes", max_bytes),
    "redis": lambda request, max_bytes: open_bytes(request.getfixturevalue("redis_url"), max_bytes),
    "fsspec": lambda request, max_bytes: open_bytes(f"memory+fsspec://{request.node.name}/x", max_bytes),
    "s3": lambda request, max_bytes: open_bucket(*request.getfixturevalue("s3_bucket"), max_bytes),
    "bytestore": lambda _, max_bytes: open_bytes(InMemoryByteStore(), max_bytes),
    "files": lambda request, max_bytes: open_local_files(request.getfixturevalue("tmp_path") / "bytes", max_bytes),
}


def open_bucket(url, options, max_bytes):
    return open_bytes(url, max_bytes, **options)


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.redis] if kind == "redis" else []) for kind in OPENERS])
def kind(request):
    return request.param


@pytest.fixture
def bounded(request, kind):
    """A function that opens a new store of each kind with a bound."""
    return lambda max_bytes: OPENERS[kind](request, max_bytes)


@pytest.fixture
def place(bounded):
    return bounded(None)


def test_every_kind_of_store_has_the_protocol(place, kind):
    assert isinstance(place, ByteStore)
    assert place.secret_source == {"memory": "process", "file": "keyfile"}.get(kind, "required")


def test_bytes_are_read_as_they_were_written(place):
    items = {key(0): b"", key(1): bytes(range(256)) * 50, key(1, SOURCE): b"text", key(1, RECORD): b"chat"}
    place.put(items)
    items[key(0, GIST, "other")] = b"other"
    place.put({key(0, GIST, "other"): b"other"})
    assert {name: place.get(name) for name in items} == items
    assert dict(place.entries("ns")) == {name: len(data) for name, data in items.items() if name.startswith("ns/")}
    assert dict(place.entries("none")) == {}
    place.put({key(1): b"new"})
    assert place.get(key(1)) == b"new"
    assert place.usage().n_bytes - open_bytes("memory://").usage().n_bytes in {16, 16 + 20}


def test_the_first_bytes_can_be_read_without_using_them(bounded):
    place = bounded(250)
    place.put({key(0): bytes(range(100))})
    place.put({key(1): b"short"})
    assert place.head(key(0), 10) == bytes(range(10))
    assert place.head(key(1), 10) == b"short"
    assert place.head(key(2), 10) is None
    place.put({key(2): bytes(200)})
    assert [place.contains(key(number)) for number in range(3)] == [False, True, True]


def test_what_is_missing_or_deleted_is_none(place):
    place.put({key(0): b"x", key(1): b""})
    assert place.get(key(2)) is None
    assert place.contains(key(0))
    assert place.delete((key(0), key(1), key(2))) == 2
    assert place.delete((key(0),)) == 0
    assert place.get(key(0)) is None
    assert not place.contains(key(0))


def test_what_was_not_used_for_longest_goes_first(bounded):
    place = bounded(350)
    for number in range(3):
        place.put({key(number): bytes(100)})
    place.get(key(0))
    place.put({key(3): bytes(100)})
    place.get(key(2))
    place.put({key(4): bytes(100)})
    assert [place.contains(key(number)) for number in range(5)] == [False, False, True, True, True]
    assert place.usage().n_evicted == 2


def test_asking_whether_something_is_there_is_no_use_of_it(bounded):
    place = bounded(250)
    place.put({key(0): bytes(100)})
    place.put({key(1): bytes(100)})
    assert place.contains(key(0))
    place.put({key(2): bytes(100)})
    assert [place.contains(key(number)) for number in range(3)] == [False, True, True]


def test_source_records_outlive_memories_and_go_last(bounded):
    place = bounded(345)
    for number in range(3):
        place.put({key(number, SOURCE): bytes(50), key(number): bytes(100)})
    assert [place.contains(key(number)) for number in range(3)] == [False, False, True]
    assert all(place.contains(key(number, SOURCE)) for number in range(3))
    place.put({key(3, SOURCE): bytes(100), key(3): bytes(150)})
    assert [place.contains(key(number)) for number in range(4)] == [False, False, False, True]
    assert [place.contains(key(number, SOURCE)) for number in range(4)] == [False, False, True, True]


def test_records_are_never_evicted(bounded):
    place = bounded(305)
    place.put({key(0, RECORD): bytes(100)})
    place.put({key(0, SOURCE): bytes(40), key(0): bytes(60)})
    place.put({key(1, RECORD): bytes(90), key(2, RECORD): bytes(80)})
    assert [name for name, _ in sorted(place.entries("ns"))] == [key(number, RECORD) for number in range(3)]
    with pytest.raises(StoreError, match="270 bytes of records"):
        place.put({key(3, SOURCE): bytes(20), key(3): bytes(31)})
    with pytest.raises(StoreError, match="180 bytes of records"):
        place.put({key(1, RECORD): bytes(130)})
    assert dict(place.entries("ns")) == {key(0, RECORD): 100, key(1, RECORD): 90, key(2, RECORD): 80}
    place.put({key(1, RECORD): bytes(20)})
    assert place.get(key(1, RECORD)) == bytes(20)


def test_a_quota_holds_for_its_folder_and_takes_from_it_only(bounded):
    place = bounded(None)
    for number in range(4):
        place.put({key(number, SOURCE): bytes(10), key(number): bytes(100)}, quota=345)
        place.put({key(number, GIST, "other"): bytes(100)})
    place.get(key(2))
    place.put({key(9, RECORD): bytes(50)}, quota=345)
    place.put({key(5): bytes(100)}, quota=345)
    assert sum(size for _, size in place.entries("ns")) <= 345
    assert [number for number in range(10) if place.contains(key(number))] == [2, 5]
    assert all(place.contains(key(number, SOURCE)) for number in range(4))
    assert all(place.contains(key(number, GIST, "other")) for number in range(4))
    with pytest.raises(StoreError, match=r"50 bytes of records.*quota is 345"):
        place.put({key(6): bytes(296)}, quota=345)
    assert place.contains(key(5))
    place.put({key(6): bytes(295)}, quota=345)
    assert sorted(place.entries("ns")) == [(key(6), 295), (key(9, RECORD), 50)]


def test_a_quota_and_a_bound_hold_together(bounded):
    place = bounded(480)
    for number in range(2):
        place.put({key(number, GIST, "other"): bytes(100)}, quota=250)
        place.put({key(number): bytes(100)}, quota=250)
    place.put({key(2): bytes(120)}, quota=250)
    assert [place.contains(key(number)) for number in range(3)] == [False, True, True]
    assert [place.contains(key(number, GIST, "other")) for number in range(2)] == [True, True]
    place.put({key(2, GIST, "third"): bytes(130)}, quota=250)
    assert [place.contains(key(number, GIST, "other")) for number in range(2)] == [False, True]
    assert place.usage().n_bytes <= 480


def test_a_put_is_of_one_folder(place):
    with pytest.raises(InputError, match="one folder"):
        place.put({key(0): b"x", key(0, GIST, "other"): b"y"})
    for items in ({"ns/short.gist": b"x"}, {}):
        with pytest.raises(InputError, match="form folder/id"):
            place.put(items)
    assert list(place.entries("ns")) == []


def test_the_bound_is_never_exceeded(bounded, kind, tmp_path):
    place = bounded(1000)
    for number in range(12 if kind == "s3" else 100):
        place.put({key(number % 20): bytes(number * 37 % 400), key(number % 40, SOURCE): bytes(number * 11 % 60)})
        if number % 7 == 0:
            place.delete((key(number % 13),))
        assert place.usage().n_bytes <= 1000
        assert bytes_in(tmp_path) <= 1000
        assert place.contains(key(number % 20)) or number % 7 == 0


def test_what_cannot_fit_is_refused_and_nothing_is_lost(bounded):
    place = bounded(300)
    place.put({key(0): bytes(200)})
    with pytest.raises(StoreError, match="max_bytes is 300"):
        place.put({key(1, SOURCE): bytes(100), key(1): bytes(250)})
    assert place.contains(key(0))
    assert not place.contains(key(1, SOURCE))


def test_sixteen_threads_on_one_store(bounded, kind, monkeypatch):
    monkeypatch.setattr("ultragist_rag.store.disk._LOCK_SECONDS", 600.0)  # they take turns in no order
    steps = {"s3": 1, "file": 12}.get(kind, 25)
    place = bounded(5000)
    failures = []

    def work(seed):
        try:
            for step in range(steps):
                name = key((seed * 7 + step) % 50)
                place.put({name: name.encode() * (step + 1)})
                found = place.get(key((seed + step) % 50))
                if found:
                    assert found == found[: len(name)] * (len(found) // len(name))
                    assert found.startswith(key((seed + step) % 50).encode())
                if step % 5 == 0:
                    place.delete((name,))
                assert place.usage().n_bytes <= 5000
        except Exception as error:  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_every_scheme_is_tested():
    assert SCHEMES.keys() - OPENERS.keys() == {"rediss", "unix"}  # in test_redis.py


@pytest.mark.parametrize("url", ["ab://", "nosuch://bucket/x", "c3po::s3://bucket"])
def test_an_unknown_scheme_is_named_and_what_to_install(url):
    with pytest.raises(InputError, match=rf"no store for {url.split('//')[0]}//.*ultragist-rag\[redis\], \[s3\]"):
        open_bytes(url)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("redis://h", "redis", "redis"),
        ("s3://b", "s3fs", "s3"),
        ("gs://b/x", "gcsfs", "gs"),
        ("xy://b", "fsspec", "remote"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(url, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "s3fs":  # fsspec remembers what it has loaded
        monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(InputError, match=rf"{url}.*install ultragist-rag\[{extra}\]"):
        open_bytes(url)


@pytest.mark.parametrize("url", ["memory://", "folder", InMemoryByteStore()])
def test_options_of_places_without_any_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="options endpoint_url: "):
        open_bytes(url, endpoint_url="http://x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_bytes", [0, -1, True, 1.5, "9"])
def test_a_bound_must_be_a_number_of_bytes(max_bytes):
    with pytest.raises((InputError, TypeError), match="max_bytes"):
        open_bytes("memory://", max_bytes)


def test_an_empty_path_is_refused():
    with pytest.raises(InputError, match="empty"):
        open_bytes("")


def test_stores_in_memory_are_shared_by_name_only(tmp_path):
    one, other, unnamed = open_bytes("memory://one"), open_bytes("memory://other"), open_bytes("memory://")
    one.put({key(0): b"x"})
    assert open_bytes("memory://one").contains(key(0))
    assert not any(place.contains(key(0)) for place in (other, unnamed, open_bytes("memory://")))
    with pytest.raises(InputError, match="max_bytes None, not 5"):
        open_bytes("memory://one", 5)
