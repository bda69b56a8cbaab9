import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from patience import PATIENCE, until
from together import N, facts, held, settings_of

from ultragist_rag.batching import BatchQueue
from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.memory import rows
from ultragist_rag.reader import Reader
from ultragist_rag.requests import _queues, turn

SETTINGS = [
    {},
    {"do_sample": True, "seed": 3},
    {"do_sample": True, "seed": 4, "temperature": 0.7, "top_p": 0.8},
    {"do_sample": True, "seed": 4, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 15},
    {"max_new_tokens": 1},
    {"stop": ["a", "e"], "max_new_tokens": 20},
    {"do_sample": True, "seed": 5, "top_k": 9, "stop": ["i"]},
    {"do_sample": True, "seed": 6, "min_p": 0.1},
]
ALONE = [
    {"num_beams": 2},
    {"do_sample": True, "seed": 7, "num_return_sequences": 2},
    {"repetition_penalty": 1.5},
    {"eos_token_id": 40},
]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_the_one_that_its_prompt_gets_alone_in_whatever_company(engine, prompts, seed):
    rng = random.Random(seed)
    asked = [(rng.choice(prompts), rng.choice(SETTINGS if rng.random() < 0.8 else ALONE)) for _ in range(10)]
    with engine.batching(max_batch=rng.choice([2, 5, 16]), max_wait=0.0) as queue, held(engine, queue, *asked) as given:
        pass
    for (pieces, settings), answer in zip(asked, given, strict=True):
        assert facts(answer.result()) == facts(engine.answer(pieces, **settings_of(settings)))
    stats = queue.stats()
    assert (stats.n_answered, stats.n_failed, stats.n_left, stats.n_refused, stats.n_waiting) == (11, 0, 0, 0, 0)
    assert sum(size * n for size, n in stats.batches.items()) == 11
    assert max(stats.batches) > 1


def test_draws_without_a_seed_follow_the_global_generator(engine):
    with engine.batching() as queue:
        torch.manual_seed(5)
        expected = facts(engine.answer("the fox", do_sample=True, max_new_tokens=N))
        torch.manual_seed(5)
        assert facts(queue.answer("the fox", do_sample=True, max_new_tokens=N)) == expected


def test_first_come_first_served(engine, prompts):
    begun = []

    def noting(number, settings):
        return {**settings, "on_token": lambda token: number in begun or begun.append(number)}

    plans = [SETTINGS[0], SETTINGS[1], ALONE[2], SETTINGS[0], SETTINGS[5], SETTINGS[1], SETTINGS[1], SETTINGS[1]]
    asked = [(prompts[number % 4], noting(number, settings)) for number, settings in enumerate(plans)]
    with engine.batching(max_batch=3, max_wait=0.0) as queue, held(engine, queue, *asked):
        pass
    assert begun == list(range(8))
    assert queue.stats().batches == {1: 2, 2: 2, 3: 1}  # 0 1 | 2 | 3 4 5 | 6 7, after the one that held the others


def test_a_batch_has_no_more_columns_than_the_model_has_positions(engine, monkeypatch):
    monkeypatch.setattr(engine.attachment, "n_positions", 100)
    long = ["x" * 80]
    asked = [(long, {"max_new_tokens": 2}), (["short"], {"max_new_tokens": 30}), (["short"], {"max_new_tokens": 4})]
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, *asked) as given:
        pass
    assert queue.stats().batches == {1: 2, 2: 1}
    for (pieces, settings), answer in zip(asked, given, strict=True):
        assert facts(answer.result()) == facts(engine.answer(pieces, **settings))


def test_an_idle_engine_serves_at_once_and_a_full_batch_does_not_wait(engine, prompts):
    with engine.batching(max_batch=2, max_wait=PATIENCE) as queue:
        queue.answer("the fox", max_new_tokens=2)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda text: queue.answer(text, max_new_tokens=2), ["one", "two"]))
        assert queue.stats().batches == {1: 1, 2: 1}
        start = time.monotonic()
    assert time.monotonic() - start < PATIENCE / 2  # closing does not wait for more to come


def test_what_waits_is_not_held_back_for_longer_than_it_says(engine):
    with engine.batching(max_wait=0.05) as queue:
        queue.answer("the fox", max_new_tokens=2)
        queue.answer("the fox", max_new_tokens=2)
        assert queue.stats().batches == {1: 2}


@pytest.mark.parametrize(
    ("pieces", "settings", "error"),
    [
        ([torch.tensor([[0.5]])], {}, InputError),
        ([], {}, InputError),
        ([torch.tensor([[10**6]])], {}, InputError),
        ([["a"], ["b"]], {}, InputError),
        (["a"], {"colour": "red"}, InputError),
        (["a"], {"num_beams": 2, "on_token": print}, InputError),
        (["a" * 5000], {}, ContextOverflowError),
        (["a"], {"on_token": lambda token: 1 / 0}, ZeroDivisionError),
        (["a"], {"stopping_criteria": [lambda ids, scores, **_: 1 / 0]}, ZeroDivisionError),
        (["a"], {"logits_processor": [lambda ids, scores: 1 / 0]}, ZeroDivisionError),
        (["a"], {"cancelled": lambda: 1 / 0}, ZeroDivisionError),
    ],
)
def test_a_bad_request_fails_alone(engine, prompts, pieces, settings, error):
    asked = [(prompts[0], SETTINGS[1]), (pieces, settings), (prompts[1], SETTINGS[0])]
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, *asked) as given:
        pass
    with pytest.raises(error):
        given[1].result()
    for (good, how), answer in [(asked[0], given[0]), (asked[2], given[2])]:
        assert facts(answer.result()) == facts(engine.answer(good, **settings_of(how)))


def test_a_batch_that_fails_is_asked_one_by_one(engine, prompts, monkeypatch):
    decode, tokens = rows.decode, []

    def out_of_memory(engine, prompts, decoding):
        if len(prompts) == 1:
            return decode(engine, prompts, decoding)
        decode(engine, prompts, replace(decoding, max_new_tokens=2))
        raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(rows, "decode", out_of_memory)
    asked = [(prompts[0], {"on_token": tokens.append}), (prompts[1], SETTINGS[1])]
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, *asked) as given:
        pass
    monkeypatch.undo()
    for (pieces, _), how, answer in zip(asked, [{}, SETTINGS[1]], given, strict=True):
        assert facts(answer.result()) == facts(engine.answer(pieces, **settings_of(how)))
    assert tokens == given[0].result().ids.tolist()  # each given once
    assert queue.stats().batches == {1: 3, 2: 1}


def test_an_error_of_the_model_reaches_everybody(engine, prompts, monkeypatch):
    def broken(*_):
        raise RuntimeError("the model is broken")

    monkeypatch.setattr(rows, "decode", broken)
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, (prompts[0], {}), (prompts[1], {})) as given:
        pass
    for answer in given:
        with pytest.raises(RuntimeError, match="is broken"):
            answer.result()
    assert queue.stats().n_failed == 3


def test_no_thread_is_left_and_a_queue_can_be_dropped(engine):
    queue = engine.batching(max_wait=0.0)
    for _ in range(3):
        queue.answer("the fox", max_new_tokens=2)
    until(lambda: not any(thread.name == "ultragist-batching" for thread in threading.enumerate()))
    gone = weakref.ref(queue)
    del queue
    gc.collect()
    assert gone() is None


def test_an_answer_comes_when_it_is_complete_not_when_its_batch_is(engine, prompts):
    tokens, futures = [], []

    def take(token):
        tokens.append(token)
        if len(tokens) > N:
            until(futures[1].done)

    long = {"on_token": take, "max_new_tokens": 3 * N}
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, (prompts[0], long), (prompts[1], {})) as given:
        futures += given
    assert len(tokens) == 3 * N
    assert queue.stats().batches == {1: 1, 2: 1}


@pytest.mark.parametrize("kind", ["attention", "leave-one-out"])
def test_sources_are_those_of_the_answer_alone(engine, prompts, kind):
    asked = [(prompts[1], {"sources": kind}), (prompts[2], {}), (prompts[2], {"sources": kind})]
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, *asked) as given:
        pass
    for (pieces, settings), answer in zip(asked, given, strict=True):
        alone = engine.answer(pieces, **settings_of(settings))
        assert facts(answer.result()) == facts(alone)
        assert answer.result().sources == (None if alone.sources is None else pytest.approx(alone.sources, abs=1e-4))


async def test_coroutines_are_answered_side_by_side(engine, prompts):
    with engine.batching(max_wait=PATIENCE, max_batch=3) as queue:
        await queue.aanswer("the fox", max_new_tokens=2)
        asked = [queue.aanswer(pieces, max_new_tokens=N) for pieces in prompts[:3]]
        answers = await asyncio.gather(*asked)
        assert queue.stats().batches == {1: 1, 3: 1}
    for pieces, answer in zip(prompts, answers, strict=False):
        assert facts(answer) == facts(engine.answer(pieces, max_new_tokens=N))


def test_streams_are_rows_of_a_batch(engine, prompts):
    with engine.batching(max_wait=PATIENCE, max_batch=3) as queue:
        queue.answer("the fox", max_new_tokens=2)
        with ThreadPoolExecutor(3) as pool:
            shown = pool.map(lambda pieces: "".join(queue.stream(pieces, max_new_tokens=N, stop=["e"])), prompts[:3])
        assert list(shown) == [engine.answer(pieces, max_new_tokens=N, stop=["e"]).text for pieces in prompts[:3]]
        assert queue.stats().batches == {1: 1, 3: 1}


def test_readers_and_batches_take_turns(engine, prompts):
    served = []
    with engine.batching() as queue, ThreadPoolExecutor(2) as pool:
        note = {"stopping_criteria": [lambda ids, scores, **_: served.append("reader") or torch.tensor([True])]}
        with turn(engine):
            first = pool.submit(queue.answer, prompts[0], on_token=lambda token: served.append("batch"))
            until(lambda: queue._worker is not None and not queue._waiting and len(_waiting(engine)) == 2)
            second = pool.submit(Reader(engine, None).answer, [["the fox"]], **note)
            until(lambda: len(_waiting(engine)) == 3)
        first.result(PATIENCE)
        second.result(PATIENCE)
    assert served == ["batch"] * len(first.result().ids) + ["reader"]


def _waiting(engine):
    return _queues[engine]._requests


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"max_batch": True}, {"max_waiting": 0}, {"max_wait": -1.0}])
def test_settings_are_checked(engine, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        BatchQueue(engine, **settings)
