"""New ids for what is stored: nothing is lost, nothing stays readable under the old secret, whenever it is killed."""

import pytest
import torch

from ultragist_rag.errors import CorruptGistError, GistNotFoundError, InputError, StoreError
from ultragist_rag.store import GistStore, parse_marker, rotation
from ultragist_rag.store.base import GIST, SOURCE
from ultragist_rag.store.memory_bytes import MemoryBytes
from ultragist_rag.store.quantise import as_stored
from ultragist_rag.store.shelf import Shelf

SECRET, NEW = "a secret of the tests", "another secret of the tests"
TEXTS = [f"Document number {number}, of some length." for number in range(20)]


def evict(store, marker, ending=GIST):
    assert store._shelf.place.delete((store._shelf.key(parse_marker(marker), ending),)) == 1


def damage(store, marker, ending=GIST):
    key = store._shelf.key(parse_marker(marker), ending)
    data = bytearray(store._shelf.place.get(key))
    data[-10] ^= 1
    store._shelf.place.put({key: bytes(data)})


def files(shelf):
    return {key: shelf.place.get(key) for key, _ in shelf.place.entries(shelf.folder)}


def test_everything_moves_to_the_new_secret(url, engine, same):
    keeper = GistStore.open(url, secret=NEW)
    store = GistStore.open(url, secret=SECRET, ram_bytes=10**6)
    old = store.get_or_compress(engine, TEXTS, metadata=[{"n": n} for n in range(20)])
    old += [store.put(engine.one("a"), text="a", quantise=kind) for kind in ("int8", "int4")]
    live = [store.get(marker) for marker in old]
    sources = [store.source(marker) for marker in old]
    evict(store, old[3])
    seen = []
    report = store.rotate(NEW, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 22) for number in range(1, 23)]
    assert set(report.markers) == set(old)
    assert (report.n_without_source, report.damaged) == (0, ())
    for number, marker in enumerate(old):
        with pytest.raises(GistNotFoundError):
            store.get(marker)
        record = store.source(report.markers[marker])
        assert (record.text, record.metadata) == (sources[number].text, sources[number].metadata)
        assert record.stored == sources[number].stored
        assert same(store.get(report.markers[marker], engine), live[number])
    engine.batches.clear()
    assert keeper.get_or_compress(engine, TEXTS) == [report.markers[marker] for marker in old[:20]]
    assert engine.batches == []
    old_store = GistStore.open(url, secret=SECRET)
    assert list(old_store._shelf.place.entries(old_store._shelf.folder)) == []
    assert old_store.rotate(NEW).markers == report.markers  # told again


def test_quantised_files_move_bit_by_bit(make_memory):
    store = GistStore.open("memory://", secret=SECRET)
    marker = store.put(make_memory(slots=50, dtype=torch.bfloat16), text="a", quantise="int4")
    before = store._shelf.place.get(store._shelf.key(parse_marker(marker), GIST))
    new = store.rotate(NEW).markers[marker]
    after = store._shelf.place.get(store._shelf.key(parse_marker(new), GIST))
    assert after[101:].replace(parse_marker(new).encode(), parse_marker(marker).encode()) == before[101:]
    assert after[37:101] != before[37:101]


def test_records_move_along_and_name_the_new_ids(url, make_memory):
    store = GistStore.open(url, secret=SECRET)
    marker = store.put(make_memory(), text="a")
    store.records.put("page", {"p": {"text": f"somebody said {marker}"}})
    store.records.put("session", {"s": {"pages": ["p"], "memories": [[0, marker, parse_marker(marker)]]}})
    report = store.rotate(NEW)
    new = report.markers[marker]
    assert report.n_records == 2
    assert store.records.get("session", "s")["memories"] == [[0, new, parse_marker(new)]]
    assert store.records.get("page", "p") == {"text": f"somebody said {marker}"}
    third = store.rotate("a third secret of the tests")
    assert store.records.get("session", "s")["memories"] == [[0, third.markers[new], parse_marker(third.markers[new])]]
    assert store.records.names("page") == ["p"]


def test_a_memory_that_is_known_by_its_content_moves_too(url, make_memory, same):
    store = GistStore.open(url, secret=SECRET)
    marker = store.put(make_memory())
    other = GistStore.open("memory://", "other", SECRET)
    quantised = store.copy_to(other, quantise="int8").markers[marker]
    assert quantised == other.put(make_memory(), quantise="int8")
    new = store.rotate(NEW).markers[marker]
    assert new == store.put(make_memory())
    assert same(store.get(new), make_memory())


@pytest.mark.parametrize("drop", [False, True])
def test_what_has_no_source_stays_behind_or_is_dropped(url, make_memory, drop):
    store = GistStore.open(url, secret=SECRET)
    kept = store.put(make_memory(1), text="a")
    private, quantised = (
        store.put(make_memory(2), text="b", keep_source=False),
        store.put(make_memory(3), quantise="int8"),
    )
    report = store.rotate(NEW, drop=drop)
    assert set(report.markers) == {kept}
    assert (set(report.without_source), report.n_without_source) == ({private, quantised}, 2)
    assert len(store) == 1
    assert sorted(GistStore.open(url, secret=SECRET)) == ([] if drop else sorted([private, quantised]))


def test_damaged_files_are_named_and_made_again_where_that_is_possible(url, engine, same):
    store = GistStore.open(url, secret=SECRET)
    whole, memory_damaged, source_damaged = store.get_or_compress(engine, TEXTS[:3])
    damage(store, memory_damaged)
    damage(store, source_damaged, SOURCE)
    store.records.put("note", {"a": {"text": "a note"}})
    (key,) = [key for key, _ in store._shelf.entries() if key.endswith(".record")]
    data = store._shelf.place.get(key)
    store._shelf.place.put({key: data[:-1] + b"]"})
    report = store.rotate(NEW)
    assert report.damaged == (source_damaged, "note a")
    assert set(report.markers) == {whole, memory_damaged}
    assert report.markers[memory_damaged] not in store
    assert same(store.get(report.markers[memory_damaged], engine), engine.one(TEXTS[1]))
    with pytest.raises(CorruptGistError):
        GistStore.open(url, secret=SECRET).source(source_damaged)


class DyingBytes(MemoryBytes):
    """A place that fails from some call on."""

    left = 10**9

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise StoreError("gone")

    def put(self, items, *, quota=None):
        self._count()
        super().put(items, quota=quota)

    def delete(self, keys):
        self._count()
        return super().delete(keys)


def test_killed_anywhere_and_run_again_it_ends_the_same(engine, monkeypatch):
    monkeypatch.setattr(rotation, "_BATCH", 2)
    texts = TEXTS[:5]
    for n_calls in range(100):
        place = DyingBytes()
        store = GistStore(Shelf(place, "default", SECRET.encode()))
        old = store.get_or_compress(engine, texts)
        store.records.put("page", {"p": {}})
        store.records.put("session", {"s": {"marker": old[4]}})
        place.left = n_calls
        try:
            store.rotate(NEW)
            break
        except StoreError:
            place.left = 10**9
        again = GistStore(Shelf(place, "default", SECRET.encode()))
        report = again.rotate(NEW)
        assert set(report.markers) == set(old)
        assert all(again.source(report.markers[one]).text == text for one, text in zip(old, texts, strict=True))
        assert sorted(again) == sorted(report.markers.values())
        assert again.records.get("session", "s") == {"marker": report.markers[old[4]]}
        assert again.records.names("page") == ["p"]
        assert list(place.entries(GistStore(Shelf(place, "default", SECRET.encode()))._shelf.folder)) == []
    assert 15 < n_calls < 99


def test_none_is_no_secret_and_a_path_no_store(make_memory):
    store = GistStore.open("memory://", secret="a secret of these tests")
    marker = store.put(make_memory(), text="a")
    with pytest.raises((InputError, TypeError), match=r"new.secret"):
        store.rotate(None)
    with pytest.raises((InputError, TypeError), match="other"):
        store.copy_to("a folder")
    assert list(store) == [marker]


def test_the_secret_it_has_is_refused(url, make_memory):
    store = GistStore.open(url, secret=SECRET)
    marker = store.put(make_memory(), text="a")
    for secret in (SECRET, ""):
        with pytest.raises(InputError):
            store.rotate(secret)
    assert marker in store


def test_a_copy_in_another_place_has_the_same_files(url, make_memory, engine, tmp_path):
    store = GistStore.open(url, secret=SECRET)
    store.get_or_compress(engine, TEXTS)
    store.put(make_memory())
    store.records.put("note", {"a": {"n": 1}})
    other = GistStore.open(tmp_path / "other", secret=SECRET)
    for _ in range(2):
        report = store.copy_to(other)
        assert all(old == new for old, new in report.markers.items())
        assert (len(report.markers), report.without_source, report.n_records) == (21, (), 1)
    mine, theirs = files(store._shelf), files(other._shelf)
    assert {key: data for key, data in mine.items() if not key.endswith(".record")} == {
        key: data for key, data in theirs.items() if not key.endswith(".record")
    }
    other.records.put("note", {"a": {"n": 2}})
    store.copy_to(other)
    assert other.records.get("note", "a") == {"n": 2}


def test_a_copy_can_be_quantised_in_another_namespace(url, engine, make_memory, same):
    store = GistStore.open(url, secret=SECRET)
    markers = store.get_or_compress(engine, TEXTS[:3])
    private = store.put(make_memory(), text="private", keep_source=False)
    other = GistStore.open("memory://", "other", SECRET, quantise="int8")
    report = store.copy_to(other, quantise="int8")
    assert report.without_source == (private,)
    assert other.get_or_compress(engine, TEXTS[:3]) == [report.markers[marker] for marker in markers]
    for marker in markers:
        assert same(other.get(report.markers[marker]), as_stored(store.get(marker), "int8"))
    with pytest.raises((InputError, TypeError), match="quantise"):
        store.copy_to(other, quantise="int3")
