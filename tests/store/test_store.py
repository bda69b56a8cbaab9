"""The front of the store: markers in and out, found again, made again, never mixed up."""

import logging
import random

import pytest
import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import CorruptGistError, GistNotFoundError, InputError, StoreError
from ultragist_rag.memory.memory import Progress
from ultragist_rag.store import GistStore
from ultragist_rag.store.recipes import recipe_of
from ultragist_rag.store.refs import parse, to_marker

SECRET = "a secret of the tests"
TEXTS = ["The first document.", "A second, longer document about Bahrain.", "A third."]


def files(root, ending):
    return sorted(root.rglob(f"*.{ending}"))


def evict(store, marker):
    """Remove the memory and leave its source record, as a full store does."""
    assert store._shelf.place.delete((store._shelf.key(parse(marker), ".gist"),)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_equals_live(store, make_memory, same, dtype):
    memory = make_memory(dtype=dtype)
    marker = store.put(memory, text="a text", metadata={"source": "x.txt", "page": 3})
    assert same(store.get(marker), memory)
    assert same(store.get(marker.upper()), memory)
    assert same(store.get(parse(marker)), memory)
    record = store.source(marker)
    assert (record.text, record.metadata) == ("a text", {"source": "x.txt", "page": 3})
    assert record.recipe == recipe_of(memory)


def test_reading_many_is_reading_each(store, make_memory, same):
    memories = [make_memory(number) for number in range(20)]
    markers = [store.put(memory, text=str(number)) for number, memory in enumerate(memories)]
    order = [*reversed(range(20)), 3, 3]
    found = store.get_many([markers[number] for number in order])
    assert all(same(one, memories[number]) for one, number in zip(found, order, strict=True))
    assert store.get_many([]) == []
    (row,) = store.resolve_all(None, ["".join(markers)])
    assert all(same(one, memory) for one, memory in zip(row, memories, strict=True))


def test_reading_many_stops_at_the_first_that_is_not_there(store, make_memory):
    markers = [store.put(make_memory(number), text=str(number)) for number in range(4)]
    store.delete(markers[2])
    with pytest.raises(GistNotFoundError, match=parse(markers[2])):
        store.get_many(markers)
    with pytest.raises(InputError, match="list"):
        store.get_many(markers[0])
    with pytest.raises(GistNotFoundError, match="no marker"):
        store.get_many([markers[0], "no marker"])


def test_a_memory_that_can_go_on_still_can_after_it_is_read(store, make_memory, same):
    memory = make_memory(progress=Progress(20, 16, open_ids=(5, 6, 7, 8), n_provisional=1))
    assert same(store.get(store.put(memory, text="a text")), memory)


def test_the_same_memory_gets_the_same_marker(store, make_memory):
    assert store.put(make_memory(), text="a text") == store.put(make_memory(), text="a text")
    assert len(store) == 1
    others = [
        store.put(make_memory(), text="another text"),
        store.put(make_memory(joint=True), text="a text"),
        store.put(make_memory(dtype=torch.bfloat16), text="a text"),
        store.put(make_memory(fingerprint="model-2"), text="a text"),
        store.put(make_memory(), text="a text", ratio=8),
        store.put(make_memory(config=GistConfig(window=32)), text="a text"),
    ]
    assert len({*others, store.put(make_memory(), text="a text")}) == len(store) == 7


def test_a_memory_without_text_is_known_by_its_content(store, make_memory, same):
    marker = store.put(make_memory(1))
    assert store.put(make_memory(1)) == marker
    assert store.put(make_memory(2)) != marker
    assert same(store.get(marker), make_memory(1))
    with pytest.raises(GistNotFoundError):
        store.source(marker)


def test_odd_texts_and_metadata_come_back_unchanged(store, make_memory):
    for text in ("", "\0\ud800 \U0001f600 \u00e9", '{"checksum":"' + "0" * 64, "x" * 100_000):
        marker = store.put(make_memory(), text=text, metadata={"\u00e9": [None, True, {"a": 1.5}]})
        assert store.source(marker).text == text
        assert store.source(marker).metadata == {"\u00e9": [None, True, {"a": 1.5}]}


@pytest.mark.parametrize("value", [{1, 2}, torch.ones(1), float("nan"), b"x"])
def test_metadata_that_json_cannot_carry_is_refused(store, make_memory, value):
    with pytest.raises(InputError, match="metadata"):
        store.put(make_memory(), text="x", metadata={"value": value})
    assert len(store) == 0


def test_delete_removes_the_memory_and_its_source(store, make_memory, url):
    marker = store.put(make_memory(), text="a text")
    other = store.put(make_memory(), text="other")
    assert store.delete(marker)
    assert not store.delete(marker)
    assert not store.delete("no marker")
    for read in (store.get, store.source, store.expand_markers):
        with pytest.raises(GistNotFoundError):
            read(marker)
    assert (marker in store, other in store, list(store)) == (False, True, [other])
    assert store.stats().n_sources == 1


def test_asking_what_is_there(store, make_memory):
    markers = [store.put(make_memory(), text=text) for text in TEXTS]
    assert sorted(store) == sorted(markers)
    assert len(store) == 3
    assert all(marker in store and parse(marker) in store for marker in markers)
    assert "something" not in store
    assert 7 not in store
    assert GistStore.open("memory://")
    stats = store.stats()
    assert (stats.n_memories, stats.n_sources, stats.max_bytes, stats.n_evicted) == (3, 3, None, 0)
    assert 0 < stats.n_bytes <= stats.n_total_bytes <= stats.n_bytes + 20


def test_sources_are_not_kept_if_not_wanted(url, make_memory, same):
    store = GistStore.open(url, secret=SECRET, keep_source=False)
    marker = store.put(make_memory(), text="private")
    assert same(store.get(marker), make_memory())
    with pytest.raises(GistNotFoundError):
        store.source(marker)
    assert store.source(store.put(make_memory(), text="public", keep_source=True)).text == "public"
    opposite = GistStore.open(url, secret=SECRET).put(make_memory(), text="private too", keep_source=False)
    with pytest.raises(GistNotFoundError):
        store.source(opposite)


def test_unknown_foreign_evicted_and_deleted_cannot_be_told_apart(url, make_memory, engine):
    mine, other = (GistStore.open(url, name, secret=SECRET) for name in ("mine", "other"))
    foreign, evicted, deleted = (
        other.put(make_memory(), text="x"),
        mine.put(make_memory(), text="y"),
        mine.put(make_memory()),
    )
    evict(mine, evicted)
    mine.delete(deleted)
    messages = set()
    for marker in (to_marker("a" * 26), foreign, evicted, deleted):
        with pytest.raises(GistNotFoundError) as caught:
            mine.get(marker)
        assert type(caught.value) is GistNotFoundError
        messages.add(str(caught.value).replace(parse(marker), "ID"))
    assert len(messages) == 1
    with pytest.raises(GistNotFoundError):
        mine.get("not a marker at all")


def test_logs_carry_ids_and_never_text(store, make_memory, caplog):
    marker = store.put(make_memory(), text="confidential")
    evict(store, marker)
    with caplog.at_level(logging.DEBUG):
        for wrong in (marker, "confidential"):
            with pytest.raises(GistNotFoundError) as caught:
                store.get(wrong)
            assert "confidential" not in str(caught.value)
    assert [record.levelname for record in caplog.records if record.name.startswith("ultragist_rag")] == ["WARNING"] * 2
    assert parse(marker) in caplog.text
    assert "confidential" not in caplog.text


def test_two_namespaces_never_meet(url, make_memory, engine):
    one, two = (GistStore.open(url, name, secret=SECRET) for name in ("one", "One"))
    marker = one.put(make_memory(), text="a text")
    assert two.put(make_memory(), text="another") not in one
    assert two.find("a text", engine) is None
    assert marker not in two
    assert not two.delete(marker)
    assert (len(one), len(two)) == (1, 1)
    for read in (two.get, two.source, two.expand_markers, lambda marker: two.resolve(engine, marker)):
        with pytest.raises(GistNotFoundError):
            read(marker)
    assert one.namespace != two.namespace


def test_another_secret_finds_nothing(url, make_memory):
    marker = GistStore.open(url, secret=SECRET).put(make_memory(), text="a text")
    stranger = GistStore.open(url, secret="another secret of the tests")
    assert len(stranger) == 0
    assert stranger.put(make_memory(), text="a text") != marker
    with pytest.raises(GistNotFoundError):
        stranger.get(marker)


def test_a_file_moved_to_another_id_or_namespace_is_refused(tmp_path, make_memory):
    store, other = (GistStore.open(tmp_path, name, secret=SECRET) for name in ("a", "b"))
    first, second = store.put(make_memory(1), text="first"), store.put(make_memory(2), text="second")
    foreign = other.put(make_memory(3), text="foreign")
    for ending in ("gist", "source"):
        paths = {
            parse(marker): path
            for marker in (first, second, foreign)
            for path in files(tmp_path, ending)
            if parse(marker) in path.name
        }
        paths[parse(first)].write_bytes(paths[parse(second)].read_bytes())
        paths[parse(second)].write_bytes(paths[parse(foreign)].read_bytes())
    for read in (store.get, store.source):
        with pytest.raises(CorruptGistError, match="lies under"):
            read(first)
        with pytest.raises(CorruptGistError, match="another secret"):
            read(second)


def test_300_truncations_and_bit_flips_of_stored_files_are_all_refused(tmp_path, make_memory):
    random.seed(13)
    store = GistStore.open(tmp_path, secret=SECRET)
    marker = store.put(make_memory(slots=3), text="a text " * 20, metadata={"page": 1})
    for ending, read in (("gist", store.get), ("source", store.source)):
        (path,) = files(tmp_path, ending)
        data = path.read_bytes()
        for number in range(150):
            broken = bytearray(data)
            if number % 3:
                place = random.randrange(len(data) * 8)
                broken[place // 8] ^= 1 << place % 8
            else:
                del broken[random.randrange(len(data)) :]
            path.write_bytes(broken)
            with pytest.raises(CorruptGistError):
                read(marker)
        path.write_bytes(data)
        read(marker)


def test_a_bounded_store_evicts_what_was_not_used_for_longest(url, make_memory, engine, same):
    size = GistStore.open("memory://", secret=SECRET)
    size.put(make_memory(), text="0")
    bound = 3 * size.stats().n_bytes + 8 * 600 + 20
    store = GistStore.open(f"{url}-bounded", secret=SECRET, max_bytes=bound)
    markers = []
    for number in range(8):
        markers.append(store.put(make_memory(number), text=str(number)))
        assert store.stats().n_total_bytes <= bound
        store.get(markers[0])
    assert markers[0] in store
    assert markers[7] in store
    assert markers[1] not in store
    assert store.stats().n_evicted == 8 - len(store) > 0
    assert [store.source(marker).text for marker in markers] == [str(number) for number in range(8)]


def test_a_memory_that_cannot_fit_is_refused(url, make_memory):
    store = GistStore.open(f"{url}-small", secret=SECRET, max_bytes=1000)
    with pytest.raises(StoreError, match="max_bytes is 1000"):
        store.put(make_memory(slots=50), text="x")
    assert len(store) == 0


def test_a_policy_without_a_name_and_what_is_no_marker_are_refused(store, engine):
    for policy in (len, 5):
        with pytest.raises((InputError, TypeError), match=r"register_policy|verbatim"):
            store.get_or_compress(engine, ["a text"], verbatim=policy)
        with pytest.raises((InputError, TypeError), match=r"register_policy|verbatim"):
            store.find("a text", engine, verbatim=policy)
    for wrong in (5, None):
        with pytest.raises((GistNotFoundError, TypeError), match=r"no marker|marker"):
            store.get(wrong)


@pytest.mark.parametrize("namespace", ["", None, 3])
def test_a_namespace_must_be_a_name(namespace):
    with pytest.raises((InputError, TypeError), match="namespace"):
        GistStore.open("memory://", namespace)


@pytest.mark.parametrize("namespace", ["../../etc", "\u540d\u524d", "a" * 500, "A b/c", "."])
def test_any_name_can_be_a_namespace(tmp_path, make_memory, same, namespace):
    store = GistStore.open(tmp_path / "gists", namespace, secret=SECRET)
    assert same(store.get(store.put(make_memory(), text="x")), make_memory())
    assert {path.parent.parent for path in files(tmp_path, "gist")} == {tmp_path / "gists"}
