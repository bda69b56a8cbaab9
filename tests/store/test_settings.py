"""Settings of a store: fewer bits, a bound on one namespace."""

import pytest
import torch

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store import GistStore
from ultragist_rag.store.quantise import as_stored

SECRET = "a secret of the tests"
TEXTS = ["The first document.", "A second, longer document about Bahrain."]


def evict(store, marker):
    assert store._shelf.place.delete((store._shelf.key(marker[10:-1], ".gist"),)) == 1


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_store_finds_and_makes_again_what_it_quantised(url, engine, same, kind):
    plain, store = GistStore.open(url, secret=SECRET), GistStore.open(url, secret=SECRET, quantise=kind)
    originals = plain.get_or_compress(engine, TEXTS)
    markers = store.get_or_compress(engine, TEXTS)
    assert set(originals).isdisjoint(markers)
    assert [store.find(text, engine) for text in TEXTS] == store.get_or_compress(engine, TEXTS) == markers
    assert [plain.find(text, engine, quantise=kind) for text in TEXTS] == markers
    assert [store.find(text, engine, quantise="none") for text in TEXTS] == originals
    for text, marker in zip(TEXTS, markers, strict=True):
        expected = as_stored(engine.one(text), kind)
        assert same(store.get(marker, engine), expected)
        assert not same(expected, engine.one(text))
        assert store.source(marker).recipe.dtype == kind
        evict(store, marker)
        assert same(store.get(marker, engine), expected)  # made again
        assert same(store.get(marker, engine), expected)  # read


def test_what_is_put_is_quantised_as_the_caller_or_the_store_says(url, make_memory, same):
    memory = make_memory(slots=40, dtype=torch.bfloat16)
    plain, store = GistStore.open(url, secret=SECRET), GistStore.open(url, secret=SECRET, quantise="int4")
    markers = {
        None: plain.put(memory, text="a"),
        "int8": plain.put(memory, text="a", quantise="int8"),
        "int4": store.put(memory, text="a"),
    }
    assert plain.put(memory, text="a", quantise="int4") == markers["int4"]
    assert store.put(memory, text="a", quantise="none") == markers[None]
    assert len(plain) == len(set(markers.values())) == 3
    for kind, marker in markers.items():
        assert same(store.get(marker), as_stored(memory, kind))
    sizes = {key.rpartition("/")[2][:26]: size for key, size in plain._shelf.entries() if key.endswith(".gist")}
    n_bytes = [sizes[markers[kind][10:-1]] for kind in (None, "int8", "int4")]
    assert n_bytes == sorted(n_bytes, reverse=True)


def test_a_quantised_memory_without_text_is_known_by_its_content(url, make_memory, same):
    store = GistStore.open(url, secret=SECRET, quantise="int8")
    marker = store.put(make_memory(1))
    assert store.put(make_memory(1)) == marker != store.put(make_memory(2))
    assert same(store.get(marker), as_stored(make_memory(1), "int8"))


def test_a_quota_binds_one_namespace(url, make_memory):
    size = GistStore.open("memory://", secret=SECRET)
    size.put(make_memory(), text="0")
    quota = 3 * size.stats().n_bytes
    bounded, other = (GistStore.open(url, name, SECRET, quota=q) for name, q in (("a", quota), ("b", None)))
    for number in range(8):
        bounded.put(make_memory(number), text=str(number))
        other.put(make_memory(number), text=str(number))
        assert bounded.stats().n_bytes <= quota
    assert (bounded.stats().quota, other.stats().quota) == (quota, None)
    assert (len(bounded) < 8, len(other)) == (True, 8)
    assert bounded.stats().n_sources == 8
    bounded.records.put("note", {"a": {"text": "x" * 100}})
    with pytest.raises(StoreError, match="quota"):
        bounded.records.put("note", {"b": {"text": "x" * quota}})
    assert other.stats().n_memories == 8


@pytest.mark.parametrize(
    "settings", [{"quantise": "int3"}, {"quantise": "none"}, {"quota": 0}, {"quota": True}, {"quota": "1"}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises((InputError, TypeError), match=next(iter(settings))):
        GistStore.open("memory://", **settings)
    with pytest.raises(InputError, match="colour"):
        GistStore.open("memory://", options={"colour": "red"})
