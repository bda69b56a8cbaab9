"""The front of the store: markers in and out, found again, made again, never mixed up."""

import html
import json
import logging
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import CorruptGistError, GistNotFoundError, InputError, MemoryMismatchError, StoreError
from ultragist_rag.memory.memory import Progress
from ultragist_rag.store import GistStore, neutralise
from ultragist_rag.store.recipes import recipe_for, recipe_of
from ultragist_rag.store.refs import parse, to_marker

SECRET = "a secret of the tests"
TEXTS = ["The first document.", "A second, longer document about Bahrain.", "A third."]


def files(root, ending):
    return sorted(root.rglob(f"*.{ending}"))


def evict(store, marker):
    """Remove the memory and leave its source record, as a full store does."""
    assert store._shelf.place.delete((store._shelf._key(parse(marker), ".gist"),)) == 1


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


def test_recipes_of_memories_and_engines_agree(store, engine):
    for ratio, joint in ((4, False), (8, False), (2, True)):
        memory = engine.one("some text", ratio, joint)
        assert recipe_of(memory) == recipe_for(engine, ratio, joint)
        marker = store.put(memory, text="some text")
        assert store.find("some text", engine, ratio, joint=joint) == marker


def test_what_was_compressed_once_is_found_before_compressing(store, engine):
    assert store.find(TEXTS[0], engine) is None
    markers = store.get_or_compress(engine, TEXTS)
    assert [store.find(text, engine) for text in TEXTS] == markers
    assert store.find(TEXTS[0], engine, ratio=4) == markers[0]
    assert store.find(TEXTS[0], engine, ratio=8) is None
    assert store.find(TEXTS[0], engine, joint=True) is None


@pytest.mark.parametrize(
    "changes",
    [{"fingerprint": "model-2"}, {"tokenizer_fingerprint": "tokenizer-2"}, {"config": GistConfig(window=32, ratio=4)}],
)
def test_another_engine_neither_finds_nor_reads_a_memory(store, engine, make_engine, changes):
    (marker,) = store.get_or_compress(engine, TEXTS[:1])
    other = make_engine(**changes)
    assert store.find(TEXTS[0], other) is None
    for _ in range(2):  # there, then evicted
        with pytest.raises(MemoryMismatchError, match="made with"):
            store.get(marker, other)
        with pytest.raises(MemoryMismatchError, match="made with"):
            store.resolve(other, f"Say: {marker}")
        if marker in store:
            evict(store, marker)
    assert other.batches == []


def test_all_that_is_missing_is_compressed_in_one_batch_and_only_once(store, engine, same):
    reports = []
    store.get_or_compress(engine, [TEXTS[1]])
    markers = store.get_or_compress(
        engine, [*TEXTS, TEXTS[0]], metadata=[{"number": number} for number in range(4)], progress=reports.append
    )
    assert [sorted(batch) for batch in engine.batches] == [[TEXTS[1]], sorted([TEXTS[0], TEXTS[2]])]
    assert [(report.n_texts, report.n_hits, report.n_compressed) for report in reports] == [(3, 1, 0), (3, 1, 2)]
    assert markers[0] == markers[3]
    assert all(
        same(store.get(marker), engine.one(text)) for marker, text in zip(markers, [*TEXTS, TEXTS[0]], strict=True)
    )
    assert store.source(markers[2]).metadata == {"number": 2}
    again = []
    assert store.get_or_compress(engine, TEXTS, progress=again.append) == markers[:3]
    assert [(report.n_texts, report.n_hits, report.n_compressed) for report in again] == [(3, 3, 0)]
    assert len(engine.batches) == 2
    assert store.get_or_compress(engine, []) == []


def test_many_texts_are_compressed_in_several_batches(store, engine):
    reports = []
    texts = [f"document {number} " + "x" * (number % 7) for number in range(40)]
    markers = store.get_or_compress(engine, texts, ratio=8, progress=reports.append)
    assert [report.n_compressed for report in reports] == [0, 16, 32, 40]
    assert [store.source(marker).text for marker in markers] == texts
    assert [store.find(text, engine, ratio=8) for text in texts] == markers


def test_wrong_lists_of_texts_are_refused(store, engine):
    with pytest.raises(InputError, match="put a single one into a list"):
        store.get_or_compress(engine, "one text")
    with pytest.raises(InputError, match="1 metadata for 3 texts"):
        store.get_or_compress(engine, TEXTS, metadata=[{}])


def test_a_prompt_is_cut_at_its_markers(store, engine, same):
    first, second, _ = store.get_or_compress(engine, TEXTS)
    pieces = store.resolve(engine, f"Read {first}\n\n{second.upper()}{first} and answer.")
    texts, memories = pieces[0::2][:2] + pieces[-1:], [piece for piece in pieces if not isinstance(piece, str)]
    assert texts == ["Read ", "\n\n", " and answer."]
    assert all(same(a, engine.one(text)) for a, text in zip(memories, [TEXTS[0], TEXTS[1], TEXTS[0]], strict=True))
    assert store.resolve(None, "no marker") == ["no marker"]
    with pytest.raises(GistNotFoundError):
        store.resolve(engine, f"Read {first} and {to_marker('a' * 26)}")


@pytest.mark.parametrize("change", [repr, json.dumps, html.escape, str.lower, str.upper])
def test_markers_resolve_after_what_frameworks_do_to_texts(store, engine, same, change):
    (marker,) = store.get_or_compress(engine, TEXTS[:1])
    pieces = store.resolve(engine, change(f'<b>"{marker}"</b>\n'))
    assert [type(piece) for piece in pieces][0::2] == [str, str]
    assert same(pieces[1], engine.one(TEXTS[0]))


def test_evicted_memories_are_made_again_in_one_batch(store, engine, same):
    markers = store.get_or_compress(engine, TEXTS)
    for marker in markers[:2]:
        evict(store, marker)
    with pytest.raises(GistNotFoundError):
        store.resolve(None, markers[0])
    engine.batches.clear()
    pieces = store.resolve(engine, " ".join([*markers, *markers]))
    assert all(same(piece, engine.one(text)) for piece, text in zip(pieces[0::2], TEXTS * 2, strict=True))
    assert engine.batches == [TEXTS[:2]]
    assert all(marker in store for marker in markers)
    evict(store, markers[2])
    assert same(store.get(markers[2], engine), engine.one(TEXTS[2]))


def test_what_cannot_be_made_again_the_same_way_is_not_found(store, engine, make_memory):
    plan = engine.one("text").segments[0]
    both = [plan, type(plan)("gist", 1, 5, 4, 36, 8)]
    memory = make_memory(segments=tuple(both))
    marker = store.put(memory, text="two ratios")
    evict(store, marker)
    with pytest.raises(GistNotFoundError):
        store.get(marker, engine)


def test_expanding_gives_the_texts_back_without_forged_markers(store, engine):
    forged = to_marker("b" * 26)
    markers = store.get_or_compress(engine, [TEXTS[0], f"see {forged}"])
    expanded = store.expand_markers(f"One: {markers[0]}. Two: {markers[1].upper()}.")
    assert expanded == f"One: {TEXTS[0]}. Two: see {neutralise(forged)}."
    assert store.resolve(None, expanded) == [expanded]
    with pytest.raises(GistNotFoundError):
        store.expand_markers(forged)


def test_threads_on_one_store_get_what_they_would_get_alone(store, engine, same):
    texts = [f"text {number % 6}" for number in range(48)]

    def work(text):
        (marker,) = store.get_or_compress(engine, [text])
        return same(store.get(marker, engine), engine.one(text))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, texts))
    assert len(store) == 6


@pytest.mark.parametrize("namespace", ["", None, 3])
def test_a_namespace_must_be_a_name(namespace):
    with pytest.raises((InputError, TypeError), match="namespace"):
        GistStore.open("memory://", namespace)


@pytest.mark.parametrize("namespace", ["../../etc", "\u540d\u524d", "a" * 500, "A b/c", "."])
def test_any_name_can_be_a_namespace(tmp_path, make_memory, same, namespace):
    store = GistStore.open(tmp_path / "gists", namespace, secret=SECRET)
    assert same(store.get(store.put(make_memory(), text="x")), make_memory())
    assert {path.parent.parent for path in files(tmp_path, "gist")} == {tmp_path / "gists"}
