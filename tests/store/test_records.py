"""Records: what is put is read as it was or refused, whoever listens, whatever else is evicted."""

import random

import pytest

from ultragist_rag.errors import CorruptGistError, InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.base import RECORD

SECRET = "a secret of the tests"
ODD_NAMES = ["a", "a.b/c", '"quoted\\"', "\U0001f600" * 100, "\ud800\0", "\u540d\u524d", 'name":"other']


def record_files(root):
    return sorted(root.rglob(f"*{RECORD}"))


def test_a_record_is_read_as_it_was_put(store):
    payload = {"turns": [{"role": "user", "text": "\0\ud800 \U0001f600"}], "n": 1, "x": None, "y": [0.5, True]}
    store.records.put("session", {name: {**payload, "name": name} for name in ODD_NAMES})
    assert all(store.records.get("session", name) == {**payload, "name": name} for name in ODD_NAMES)
    assert store.records.names("session") == sorted(ODD_NAMES)
    assert store.records.get("session", "b") is store.records.get("page", "a") is None


def test_kinds_are_apart_and_puts_replace(store):
    store.records.put_all([("page", "a", {"n": 1}), ("session", "a", {"n": 2}), ("page", "b", {"n": 3})])
    store.records.put("page", {"a": {"n": 4}})
    store.records.put("page", {})
    assert (store.records.names("page"), store.records.names("session")) == (["a", "b"], ["a"])
    assert [store.records.get(kind, "a")["n"] for kind in ("page", "session")] == [4, 2]
    assert store.records.delete("page", ["a", "a", "c"]) == 1
    assert store.records.delete("page", []) == 0
    assert set(store.records) == {("page", "b"), ("session", "a")}


def test_records_are_no_memories_and_outlive_every_time_limit(url, make_memory):
    keeper = GistStore.open(url, secret=SECRET)
    keeper.records.put("page", {"a": {}})
    brief = GistStore.open(url, secret=SECRET, ttl=1e-9)
    assert list(brief) == []
    assert brief.records.get("page", "a") == {}
    stats = brief.stats()
    assert (stats.n_memories, stats.n_sources, stats.n_records) == (0, 0, 1)
    assert stats.n_bytes > 0


def test_namespaces_and_secrets_have_records_of_their_own(url):
    mine = GistStore.open(url, "mine", secret=SECRET)
    mine.records.put("page", {"a": {"mine": True}})
    for other in (GistStore.open(url, "other", secret=SECRET), GistStore.open(url, "mine", secret=SECRET * 2)):
        assert other.records.get("page", "a") is None
        assert list(other.records) == []


def test_records_are_never_evicted(url, make_memory):
    store = GistStore.open(f"{url}-bounded", secret=SECRET, max_bytes=20_000)
    store.records.put("page", {"a": {"text": "x" * 5000}})
    for number in range(20):
        store.put(make_memory(number), text=str(number))
    assert store.stats().n_evicted > 0
    assert store.records.get("page", "a") == {"text": "x" * 5000}
    with pytest.raises(StoreError):
        store.records.put("page", {"b": {"text": "x" * 15_000}})
    assert store.records.names("page") == ["a"]


@pytest.mark.parametrize(
    ("kind", "name", "payload", "message"),
    [
        ("Page", "a", {}, "kind is 'Page'"),
        ("", "a", {}, "kind is ''"),
        ("page", "", {}, "1 to 100 characters"),
        ("page", "a" * 101, {}, "1 to 100 characters"),
        ("page", "a", {"x": float("nan")}, "cannot be stored"),
        ("page", "a", {"x": b"bytes"}, "cannot be stored"),
    ],
)
def test_what_is_no_record_is_refused(store, kind, name, payload, message):
    with pytest.raises(InputError, match=message):
        store.records.put_all([("page", "good", {}), (kind, name, payload)])
    assert list(store.records) == []


def test_a_name_is_no_list_of_names(store):
    store.records.put("page", {"a": {}, "b": {}})
    with pytest.raises(InputError, match="list"):
        store.records.delete("page", "ab")
    assert store.records.names("page") == ["a", "b"]


def test_damaged_and_moved_records_are_refused_and_not_listed_under_false_names(tmp_path):
    random.seed(5)
    store = GistStore.open(tmp_path, secret=SECRET)
    store.records.put("page", {"a": {"text": "a text " * 10}})
    (path,) = record_files(tmp_path)
    whole = path.read_bytes()
    for number in range(150):
        broken = bytearray(whole)
        if number % 3:
            place = random.randrange(len(whole) * 8)
            broken[place // 8] ^= 1 << place % 8
        else:
            del broken[random.randrange(len(whole)) :]
        path.write_bytes(broken)
        with pytest.raises(CorruptGistError):
            store.records.get("page", "a")
        assert store.records.names("page") in (["a"], [])
    path.write_bytes(whole)
    store.records.put("page", {"b": {}})
    (other,) = set(record_files(tmp_path)) - {path}
    other.write_bytes(whole)
    assert store.records.names("page") == ["a"]
    with pytest.raises(CorruptGistError, match="another record"):
        store.records.get("page", "b")
