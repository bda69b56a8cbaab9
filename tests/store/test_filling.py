"""One batch is written while the next is compressed, and nothing of that can be seen but the time."""

import random
import threading

import pytest
from patience import PATIENCE

from ultragist_rag.errors import StoreError
from ultragist_rag.store import GistStore, filling
from ultragist_rag.store.recipes import BATCH

TEXTS = [f"{number:03d}" for number in range(4 * BATCH - 5)]  # of one length, so batches are in order


def files_of(store):
    place = store._shelf.place
    return {key: place.get(key) for key, _ in place.entries(store._shelf.folder)}


@pytest.fixture
def writing(store, monkeypatch):
    """What is done, in order; `fails` names the text whose memory cannot be written."""
    save, log = store._shelf.save, []

    def noting(memory, record, keep_source):
        assert threading.current_thread() is not threading.main_thread()
        if record.text == noting.fails:
            raise StoreError("the disk is full")
        save(memory, record, keep_source)
        log.append(record.text)

    noting.fails, noting.log = None, log
    monkeypatch.setattr(store._shelf, "save", noting)
    return noting


@pytest.mark.parametrize("n", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, len(TEXTS)])
def test_a_store_is_the_same_as_if_each_batch_were_written_before_the_next_is_compressed(engine, monkeypatch, n):
    texts = random.Random(n).sample(TEXTS, n)
    monkeypatch.setattr("ultragist_rag.store.shelf._now", lambda: 1e9)
    one, other = (GistStore.open("memory://", secret="a secret of the tests") for _ in range(2))
    reports: list[int] = []
    markers = one.get_or_compress(engine, texts, progress=lambda report: reports.append(report.n_compressed))
    assert [marker for text in texts for marker in other.get_or_compress(engine, [text])] == markers
    assert files_of(one) == files_of(other)
    assert reports == [0, *range(BATCH, n, BATCH), *([n] if n else [])]


def test_the_next_batch_is_compressed_while_one_is_written_and_no_more(store, engine, writing, monkeypatch):
    repeat, begun = filling.repeat, []
    second, save = threading.Event(), writing

    def compress(engine, batch):
        begun.append(len(writing.log))
        if len(begun) == 2:
            second.set()
        return repeat(engine, batch)

    def wait(*args):
        assert second.wait(PATIENCE)  # nothing is written before the second batch is begun
        save(*args)

    monkeypatch.setattr(filling, "repeat", compress)
    monkeypatch.setattr(store._shelf, "save", wait)
    store.get_or_compress(engine, TEXTS)
    assert begun[:2] == [0, 0]
    assert all(n >= (number - 1) * BATCH for number, n in enumerate(begun))  # all but the last one are written
    assert writing.log == TEXTS


@pytest.mark.parametrize("bad", [0, BATCH - 1, BATCH, 2 * BATCH + 3, len(TEXTS) - 1])
def test_an_error_while_writing_stops_at_the_next_batch(store, engine, writing, bad):
    writing.fails, reports = TEXTS[bad], []
    with pytest.raises(StoreError, match="the disk is full"):
        store.get_or_compress(engine, TEXTS, progress=lambda report: reports.append(report.n_compressed))
    assert writing.log == TEXTS[:bad]
    assert reports == [number * BATCH for number in range(bad // BATCH + 1)]
    assert len(engine.batches) <= bad // BATCH + 2
    writing.fails = None
    store.get_or_compress(engine, TEXTS)
    assert writing.log == TEXTS  # only what was missing is written


@pytest.mark.parametrize("n_good", [0, 1, 2, 3])
def test_an_error_while_compressing_loses_no_batch_that_is_done(store, engine, writing, monkeypatch, n_good):
    repeat, reports = filling.repeat, []

    def failing(engine, batch):
        if len(engine.batches) == n_good:
            raise RuntimeError("out of memory")
        return repeat(engine, batch)

    monkeypatch.setattr(filling, "repeat", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        store.get_or_compress(engine, TEXTS, progress=lambda report: reports.append(report.n_compressed))
    assert writing.log == TEXTS[: n_good * BATCH]
    assert reports == [number * BATCH for number in range(n_good + 1)]
