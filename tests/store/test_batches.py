"""The store and an engine: compressing what is missing, resolving prompts, making again what was evicted."""

import html
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import GistNotFoundError, InputError, MemoryMismatchError
from ultragist_rag.store import neutralise
from ultragist_rag.store.recipes import recipe_for, recipe_of
from ultragist_rag.store.refs import parse, to_marker

TEXTS = ["The first document.", "A second, longer document about Bahrain.", "A third."]


def evict(store, marker):
    """Remove the memory and leave its source record, as a full store does."""
    assert store._shelf.place.delete((store._shelf.key(parse(marker), ".gist"),)) == 1


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
    texts, memories = pieces[0::2], [piece for piece in pieces if not isinstance(piece, str)]
    assert texts == ["Read ", "\n\n", " and answer."]
    assert all(same(a, engine.one(text)) for a, text in zip(memories, TEXTS[:2], strict=True))
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
    assert all(same(piece, engine.one(text)) for piece, text in zip(pieces[:5:2], TEXTS, strict=True))
    assert pieces[1::2] == [" ", " ", "   "]  # repeats vanish
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
