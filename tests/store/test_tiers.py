"""Tiers: bounded, in order of use, and nothing is served whose file is gone."""

import threading
from dataclasses import replace

import pytest
import torch

from ultragist_rag.errors import CorruptGistError, GistNotFoundError, InputError, MemoryMismatchError
from ultragist_rag.store import GistStore, parse_marker, shelf, tiers

SECRET = "a secret of the tests"
CPU = torch.device("cpu")


@pytest.fixture
def gpu_engine(engine):
    """An engine on the device that stands in for a GPU."""
    engine.model.device = CPU
    return engine


@pytest.fixture
def decodes(monkeypatch):
    """The number of files that were decoded."""
    made = []
    real = shelf.codec.decode
    monkeypatch.setattr(shelf.codec, "decode", lambda *args, **names: made.append(1) or real(*args, **names))
    return made


def open_tiered(url, n_ram=0, n_gpu=0, **settings):
    """A store with room for so many memories of five slots in RAM and on the device that stands in for a GPU."""
    size = 3 * 2 * 2 * 5 * 8 * 4
    return GistStore.open(
        url, secret=SECRET, ram_bytes=n_ram * size, gpu_bytes=n_gpu * size, device="cpu" if n_gpu else None, **settings
    )


def fill(store, make_memory, n=4):
    return [store.put(make_memory(number), text=str(number)) for number in range(n)]


def test_a_memory_is_decoded_once(url, make_memory, same, decodes):
    store = open_tiered(url, n_ram=4)
    markers = fill(store, make_memory)
    for _ in range(3):
        assert all(same(store.get(marker), make_memory(number)) for number, marker in enumerate(markers))
    assert len(decodes) == 4
    counts = store.stats().tiers["ram"]
    assert (counts.n_memories, counts.n_bytes, counts.n_hits) == (4, counts.max_bytes, 8)
    assert list(store.stats().tiers) == ["ram"]


def test_what_was_not_used_for_longest_makes_room(url, make_memory, decodes):
    store = open_tiered(url, n_ram=2)
    first, second, third, _ = fill(store, make_memory)
    for marker in (first, second, first, third, first):
        store.get(marker)
        assert store.stats().tiers["ram"].n_bytes <= store.stats().tiers["ram"].max_bytes
    assert len(decodes) == 3
    store.get(second)
    assert len(decodes) == 4


def test_without_bounds_nothing_is_kept(url, make_memory, decodes):
    store = open_tiered(url)
    marker, *_ = fill(store, make_memory)
    store.get(marker)
    store.get(marker)
    assert len(decodes) == 2
    assert store.stats().tiers == {}


def test_what_leaves_the_gpu_falls_to_ram_and_rises_again(url, make_memory, gpu_engine, same, decodes):
    store = open_tiered(url, n_ram=1, n_gpu=2)
    markers = fill(store, make_memory)

    def counts():
        return {tier: (one.n_memories, one.n_hits) for tier, one in store.stats().tiers.items()}

    for marker in markers[:3]:
        store.get(marker, gpu_engine)
    assert counts() == {"gpu": (2, 0), "ram": (1, 0)}
    assert same(store.get(markers[0], gpu_engine), make_memory(0))  # rises; the second one falls in its place
    assert counts() == {"gpu": (2, 0), "ram": (1, 1)}
    store.get(markers[0], gpu_engine)
    assert counts() == {"gpu": (2, 1), "ram": (1, 1)}
    store.get(markers[3], gpu_engine)  # two fall, RAM has room for one: the second one goes away
    assert len(decodes) == 4
    store.get(markers[1], gpu_engine)
    assert len(decodes) == 5


def test_without_an_engine_memories_go_to_ram_and_stay_where_they_are(url, make_memory, gpu_engine):
    store = open_tiered(url, n_ram=2, n_gpu=2)
    first, second, *_ = fill(store, make_memory)
    store.get(first)
    store.get(second, gpu_engine)
    store.get(second)
    counts = store.stats().tiers
    assert (counts["ram"].n_memories, counts["gpu"].n_memories, counts["gpu"].n_hits) == (1, 1, 1)


@pytest.mark.parametrize("gone", ["deleted", "deleted elsewhere", "expired"])
def test_what_is_gone_is_not_served(url, make_memory, monkeypatch, gone):
    now = [1000.0]
    monkeypatch.setattr(shelf, "_now", lambda: now[0])
    store = open_tiered(url, n_ram=4, ttl=60)
    marker = store.put(make_memory(), text="a")
    store.get(marker)
    if gone == "expired":
        now[0] += 60
    else:
        (store if gone == "deleted" else GistStore.open(url, secret=SECRET)).delete(marker)
    assert marker not in store
    with pytest.raises(GistNotFoundError):
        store.get(marker)
    assert store.stats().tiers["ram"].n_bytes == 0


def test_a_memory_put_again_is_read_again(url, make_memory, same):
    store = open_tiered(url, n_ram=4)
    marker = store.put(make_memory(1), text="a")
    assert same(store.get(marker), make_memory(1))
    GistStore.open(url, secret=SECRET).put(make_memory(2), text="a")
    assert same(store.get(marker), make_memory(2))


def test_an_altered_file_is_not_hidden_by_its_tier(tmp_path, make_memory):
    store = open_tiered(tmp_path, n_ram=4)
    marker = store.put(make_memory(), text="a")
    store.get(marker)
    (path,) = tmp_path.rglob("*.gist")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptGistError):
        store.get(marker)


def test_a_kept_memory_of_another_model_is_refused(url, make_memory, make_engine):
    store = open_tiered(url, n_ram=4)
    marker = store.put(make_memory(), text="a")
    store.get(marker, make_engine())
    for other in ({"fingerprint": "model-2"}, {"tokenizer_fingerprint": "tokenizer-2"}):
        with pytest.raises(MemoryMismatchError):
            store.get(marker, make_engine(**other))
    with pytest.raises(MemoryMismatchError):
        store.get(marker, make_engine(config=replace(make_engine().config, window=32)))


def test_a_memory_in_use_is_not_the_first_to_be_evicted(url, make_memory, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tiers, "_now", lambda: now[0])
    size = GistStore.open("memory://", secret=SECRET, keep_source=False)
    size.put(make_memory(), text="0")
    store = open_tiered(f"{url}-bounded", n_ram=9, max_bytes=2 * size.stats().n_bytes + 200, keep_source=False)
    first, second = (store.put(make_memory(number), text=str(number)) for number in range(2))
    store.get(first)
    store.get(second)
    now[0] += tiers.REFRESH_SECONDS + 1
    store.get(first)
    store.put(make_memory(2), text="2")
    assert (first in store, second in store) == (True, False)


def test_too_large_a_memory_is_read_each_time(url, make_memory, same):
    store = open_tiered(url, n_ram=1)
    marker = store.put(make_memory(slots=6), text="a")
    assert same(store.get(marker), make_memory(slots=6))
    assert store.stats().tiers["ram"].n_memories == 0


def test_threads_share_tiers(url, make_memory, gpu_engine, same):
    store = open_tiered(url, n_ram=2, n_gpu=2)
    markers = fill(store, make_memory, 8)
    wrong = []

    def read(offset):
        for turn in range(30):
            number = (turn * 3 + offset) % 8
            if not same(store.get(markers[number], gpu_engine if turn % 2 else None), make_memory(number)):
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    kept = store._shelf.tiers
    for tier, counts in kept.stats().items():
        assert counts.n_bytes == sum(one.memory.nbytes for one in kept._kept[tier].values()) <= counts.max_bytes
    assert not set(kept._kept["ram"]) & set(kept._kept["gpu"])
    assert store.delete(markers[0])
    assert kept.find(parse_marker(markers[0])) is None


@pytest.mark.parametrize("name", ["ram_bytes", "gpu_bytes"])
@pytest.mark.parametrize("bound", [-1, True, 1.5, "1"])
def test_bounds_must_be_numbers_of_bytes(name, bound):
    with pytest.raises((InputError, TypeError), match=name):
        GistStore.open("memory://", **{name: bound})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_tier_needs_a_gpu():
    with pytest.raises(InputError, match="no CUDA device"):
        GistStore.open("memory://", gpu_bytes=1000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_memories_lie_on_the_gpu_and_page_locked_in_ram(make_memory, engine, same):
    store = GistStore.open("memory://", ram_bytes=10**6, gpu_bytes=8000)
    engine.model.device = torch.device("cuda:0")
    markers = fill(store, make_memory)
    for _ in range(2):
        for number, marker in enumerate(markers):
            memory = store.get(marker, engine)
            assert memory.keys[0].device == engine.model.device
            assert same(memory.to("cpu"), make_memory(number))
    assert {tier: counts.n_memories > 0 for tier, counts in store.stats().tiers.items()} == {"gpu": True, "ram": True}
    assert all(kept.memory.keys[0].is_pinned() for kept in store._shelf.tiers._kept["ram"].values())
