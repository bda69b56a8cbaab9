import gc
import threading
import time

import pytest
import torch
from asking import TOKENIZER, asking_engine
from patience import PATIENCE
from plain import random_memory
from tokenizers_of_our_own import byte_level, sentencepiece_like

from ultragist_rag.errors import ContextOverflowError, InputError, UltraGistError
from ultragist_rag.memory.generate import generate
from ultragist_rag.memory.stream import StopCutter, stream
from ultragist_rag.memory.text import Detokenizer, TextCodec

WORDS = "naïve café 10 € 日本語 👩‍👩‍👧 the fox"


@pytest.fixture(scope="module")
def engine():
    return asking_engine(max_position_embeddings=4096)


def pieces_of(engine, seed=0):
    return [random_memory(engine.attachment.model, 5, seed, lead_token=1), " the fox"]


@pytest.mark.parametrize("kind", ["bytes", "first", "always", "legacy"])
def test_a_stream_never_splits_a_character(kind):
    tokenizer = byte_level() if kind == "bytes" else sentencepiece_like(kind)
    codec = TextCodec.of(tokenizer)
    ids = codec.encode(WORDS).tolist()
    detokenizer = Detokenizer(codec)
    shown = [detokenizer.push(token) for token in ids]
    assert "".join(shown) + detokenizer.flush() == codec.decode(ids) == WORDS
    assert not any("\ufffd" in piece for piece in shown)
    assert sum(map(bool, shown)) > 10


def test_random_bytes_in_pieces_equal_the_whole():
    codec = TextCodec.of(TOKENIZER)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, len(TOKENIZER), (30,), generator=generator).tolist()
        detokenizer = Detokenizer(codec)
        assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == codec.decode(ids)


@pytest.mark.parametrize("text", ["abcabd", "aaab", "xx</s>yy", "ab", "no stop here", "ababac", ""])
@pytest.mark.parametrize("stop", [("abd",), ("aab", "b"), ("</s>", "yy"), ("ababa",), ()])
def test_stop_texts_are_cut_however_the_text_comes(text, stop):
    cuts = [text.find(one) for one in stop if one in text]
    expected = text[: min(cuts)] if cuts else text
    for size in (1, 2, 3, 10):
        cutter = StopCutter(stop)
        shown = [cutter.push(text[at : at + size]) for at in range(0, len(text), size)]
        assert not any(one in "".join(shown) for one in stop)
        # With several stop texts the one that is complete first counts, as in any stream.
        if size == 10 or len(stop) < 2:
            assert "".join(shown) + cutter.flush() == expected


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 4}, {"stop": ["a", "xyz"]}, {"eos_token_id": 40}])
def test_the_pieces_together_are_what_generate_gives(engine, settings):
    for seed in range(3):
        pieces = pieces_of(engine, seed)
        expected = generate(engine, pieces, max_new_tokens=30, **settings)
        shown = list(stream(engine, pieces, max_new_tokens=30, **settings))
        assert "".join(shown) == expected
        assert all(shown)


def test_ids_are_streamed_one_by_one(engine):
    pieces = pieces_of(engine)
    expected = generate(engine, pieces, max_new_tokens=10, return_ids=True)[0].tolist()
    assert list(stream(engine, pieces, max_new_tokens=10, return_ids=True)) == expected


def test_mistakes_show_before_the_first_piece(engine):
    for pieces, settings in (
        ([["a"], ["b"]], {}),
        ("a", {"num_beams": 2}),
        ("a", {"do_sample": True, "num_return_sequences": 2}),
        ("a", {"stop": ["x"], "return_ids": True}),
        (pieces_of(engine)[:1], {}),
    ):
        with pytest.raises(InputError):
            stream(engine, pieces, **settings)
    with pytest.raises(ContextOverflowError):
        stream(engine, "a", max_new_tokens=5000)


def count_forwards(engine):
    """Count the forwards of the model from now on."""
    steps = []
    handle = engine.attachment.model.register_forward_hook(lambda *_: steps.append(time.perf_counter()))
    return steps, handle


def wait_until_free(engine):
    """Whether another thread gets the lock in time."""
    got = engine.attachment.lock.acquire(timeout=PATIENCE)
    if got:
        engine.attachment.lock.release()
    return got


def slow(engine, seconds=0.02):
    return engine.attachment.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


@pytest.mark.parametrize("how", ["close", "with", "drop", "break"])
def test_a_stream_that_is_left_frees_the_model_within_one_token(engine, how):
    steps, handle = count_forwards(engine)
    slower = slow(engine)
    shown = stream(engine, pieces_of(engine), max_new_tokens=2000)
    next(shown)
    if how == "close":
        shown.close()
        at = len(steps)
        assert list(shown) == []
    elif how == "with":
        with shown:
            next(shown)
        at = len(steps)
    elif how == "drop":
        del shown
        gc.collect()
        at = len(steps)
    else:
        for _ in shown:
            break
        del shown
        at = len(steps)
    assert wait_until_free(engine)
    time.sleep(0.1)
    assert len(steps) <= at + 2
    handle.remove()
    slower.remove()


def test_a_reader_that_dies_frees_the_model(engine):
    steps, handle = count_forwards(engine)
    slower = slow(engine)
    shown = stream(engine, pieces_of(engine), max_new_tokens=2000)
    reader = threading.Thread(target=lambda: next(shown))
    reader.start()
    reader.join()
    at = len(steps)
    assert wait_until_free(engine)
    time.sleep(0.1)
    assert len(steps) <= at + 2
    with pytest.raises(UltraGistError, match="thread that read this stream has ended"):
        list(shown)
    handle.remove()
    slower.remove()


def test_an_answer_that_is_complete_can_be_read_by_another_thread(engine):
    expected = generate(engine, pieces_of(engine), max_new_tokens=3)
    shown = stream(engine, pieces_of(engine), max_new_tokens=3)
    got = []

    def read_and_wait():
        got.append(next(shown))
        shown._thread.join()

    reader = threading.Thread(target=read_and_wait)
    reader.start()
    reader.join()
    assert "".join([*got, *shown]) == expected


def test_a_stream_closed_while_it_waits_never_runs(engine):
    steps, handle = count_forwards(engine)
    shown = stream(engine, pieces_of(engine), max_new_tokens=50)
    reader = threading.Thread(target=lambda: list(shown))
    with engine.attachment.lock:
        reader.start()
        time.sleep(0.05)
        shown.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert steps == []
    handle.remove()


def test_a_slow_reader_keeps_nobody_from_the_model(engine):
    shown = stream(engine, pieces_of(engine), max_new_tokens=20)
    first = next(shown)
    other = generate(engine, "lazy dog", max_new_tokens=5)
    assert other == generate(engine, "lazy dog", max_new_tokens=5)
    assert first + "".join(shown) == generate(engine, pieces_of(engine), max_new_tokens=20)


def test_an_error_while_decoding_reaches_the_reader_and_frees_the_model(engine):
    calls = []

    def break_down(*_):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("out of memory")

    handle = engine.attachment.model.register_forward_pre_hook(break_down)
    shown = stream(engine, pieces_of(engine), max_new_tokens=20, return_ids=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(shown)
    assert list(shown) == []
    handle.remove()
    assert wait_until_free(engine)


def test_several_streams_at_once_equal_single_ones(engine):
    alone = [generate(engine, pieces_of(engine, seed), max_new_tokens=15) for seed in range(3)]
    streams = [stream(engine, pieces_of(engine, seed), max_new_tokens=15) for seed in range(3)]
    heads = [next(one) for one in streams]
    assert [head + "".join(one) for head, one in zip(heads, streams, strict=True)] == alone


def test_the_text_of_a_stream_comes_while_it_is_decoded(engine):
    steps, handle = count_forwards(engine)
    read = threading.Event()

    def hold(*_):
        if len(steps) == 20:
            read.wait(PATIENCE)

    held = engine.attachment.model.register_forward_pre_hook(hold)
    shown = stream(engine, pieces_of(engine), max_new_tokens=60)
    next(shown)
    assert len(steps) <= 20
    read.set()
    shown.close()
    assert wait_until_free(engine)
    handle.remove()
    held.remove()
