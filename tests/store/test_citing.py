"""A store knows the ids of the memories it gave, and only of these."""

import gc

import pytest

from ultragist_rag.store import GistStore, parse_marker
from ultragist_rag.store.citing import cite

TEXTS = ["The first document.", "A second, longer document."]


@pytest.fixture
def markers(store, engine):
    return store.get_or_compress(engine, TEXTS, metadata=[{"source": "one.md"}, {}])


def test_one_entry_for_each_memory_in_prompt_order(store, engine, markers, make_memory):
    first, second = map(parse_marker, markers)
    pieces = store.resolve(engine, f"a {markers[1]} b {markers[0]} c")
    own = make_memory(seed=1)
    assert cite(store, [*pieces, own], [0.25, 0.5, -1.0]) == [
        {"id": second, "score": 0.25, "metadata": {}},
        {"id": first, "score": 0.5, "metadata": {"source": "one.md"}},
        {"id": None, "score": -1.0, "metadata": {}},
    ]
    assert cite(None, pieces, [1.0, 2.0])[1] == {"id": None, "score": 2.0, "metadata": {}}


def test_ids_are_known_however_a_memory_was_read(engine):
    store = GistStore.open("memory://", secret="a secret", ram_bytes=10**6)
    [marker] = store.get_or_compress(engine, TEXTS[:1])
    name = parse_marker(marker)
    assert store.id_of(store.get(marker)) == store.id_of(store.get(name, engine)) == name
    assert store.id_of(store.get(marker).seal()) is None
    assert GistStore.open("memory://", secret="a secret").id_of(store.get(marker)) is None


def test_memories_are_not_kept_for_the_sake_of_their_ids(store, markers):
    read = store.get(markers[0])
    assert len(store._ids) == 1
    del read
    gc.collect()
    assert len(store._ids) == 0
