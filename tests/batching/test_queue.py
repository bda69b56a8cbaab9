import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from ultragist_rag.batching import BatchQueue
from ultragist_rag.errors import (
    ContextOverflowError,
    InputError,
    QueueFullError,
    RequestTimeoutError,
    UltraGistError,
)
from ultragist_rag.memory import rows
from ultragist_rag.reader import Reader
from ultragist_rag.requests import _queues, turn

PATIENCE = 60.0
"""Seconds after which a test that hangs fails."""

N = 8
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


@pytest.fixture(scope="module")
def engine(text_engine):
    return text_engine


@pytest.fixture(scope="module")
def prompts(engine):
    first, second = engine.compress(["the quick brown fox jumps " * 4, "over the lazy dog"])
    return [["the fox"], [first, " what is it?"], ["read ", second, " and ", first, ", then answer"], ["a" * 40]]


def until(condition):
    """Wait for another thread."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def facts(given):
    several = given if isinstance(given, list) else [given]
    return [(one.text, one.ids.tolist(), one.finish, one.n_slots, one.n_prompt_tokens) for one in several]


def settings_of(settings):
    return {"max_new_tokens": N, **settings}


@contextmanager
def held(engine, queue, *asked):
    """Start requests one after the other while somebody else has the turn; yield their futures."""
    with ThreadPoolExecutor(32) as pool, turn(engine):
        futures = []
        for place, (pieces, settings) in enumerate([(["first of all"], {}), *asked]):
            n_before = queue.stats().n_waiting
            futures.append(pool.submit(queue.answer, pieces, **settings_of(settings)))
            if place == 0:  # the engine is idle, so this one waits for the turn, as a batch of its own
                until(lambda: queue._worker is not None and not queue._waiting)
            else:
                until(lambda: queue.stats().n_waiting > n_before or futures[-1].done())  # noqa: B023 - at once
        yield futures[1:]


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


def test_a_batch_has_no_more_columns_than_the_model_has_positions(engine):
    long = ["x" * (engine.max_positions - 100)]
    asked = [(long, {"max_new_tokens": 2}), (["short"], {"max_new_tokens": 300}), (["short"], {"max_new_tokens": 4})]
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


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_request_that_is_cancelled_or_late_while_it_waits_leaves_no_trace(engine, prompts, how):
    asked = threading.Event()
    wish = {"cancelled": asked.is_set} if how == "cancelled" else {"timeout": 0.01}
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, (prompts[0], wish), (prompts[1], {})) as given:
        asked.set()
        until(given[0].done)
        assert queue.stats().n_waiting == 1
    if how == "cancelled":
        assert (given[0].result().finish, len(given[0].result().ids)) == ("cancelled", 0)
    else:
        with pytest.raises(RequestTimeoutError, match="not done after"):
            given[0].result()
    assert facts(given[1].result()) == facts(engine.answer(prompts[1], max_new_tokens=N))
    assert (queue.stats().n_answered, queue.stats().n_left) == (2, 1)


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_request_that_is_cancelled_or_late_while_it_is_decoded_does_not_stop_the_others(engine, prompts, how):
    tokens, asked = [], threading.Event()

    def take(token):
        tokens.append(token)
        if len(tokens) == 3:
            asked.set()
            threading.Event().wait(0.0 if how == "cancelled" else 1.0)

    wish = {"cancelled": asked.is_set} if how == "cancelled" else {"timeout": 1.0}
    one, other = (prompts[0], {"on_token": take, "max_new_tokens": 3000, **wish}), (prompts[1], {"max_new_tokens": 30})
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, one, other) as given:
        pass
    if how == "cancelled":
        assert (given[0].result().finish, given[0].result().ids.tolist()) == ("cancelled", tokens)
    else:
        with pytest.raises(RequestTimeoutError, match="not done after"):
            given[0].result()
    assert len(tokens) <= 3
    assert facts(given[1].result()) == facts(engine.answer(prompts[1], max_new_tokens=30))


def test_a_batch_ends_when_nobody_wants_it_any_more(engine, prompts, monkeypatch):
    decode, lengths, asked = rows.decode, [], threading.Event()

    def noting(*args):
        answers = decode(*args)
        lengths.append(len(answers[0]))
        return answers

    monkeypatch.setattr(rows, "decode", noting)
    wish = {"cancelled": asked.is_set, "max_new_tokens": 3000}
    begun = {"on_token": lambda token: asked.set()}
    with engine.batching(max_wait=0.0) as queue, held(engine, queue, (prompts[0], wish), (prompts[1], wish | begun)):
        pass
    assert lengths[1] < 10


def test_a_full_queue_refuses_at_once_and_goes_on(engine, prompts):
    with engine.batching(max_waiting=2) as queue:
        with (
            held(engine, queue, (prompts[0], {}), (prompts[1], {})) as given,
            pytest.raises(QueueFullError, match="2 "),
        ):
            queue.answer("the fox")
        assert [answer.result().finish for answer in given] == ["length", "length"]
        assert queue.answer("the fox", max_new_tokens=2).finish == "length"
        assert (queue.stats().n_refused, queue.stats().n_answered) == (1, 4)


def test_closing_refuses_what_waits_and_what_comes(engine, prompts):
    queue = engine.batching(max_wait=PATIENCE)
    with held(engine, queue, (prompts[0], {}), (prompts[1], {})) as given:
        queue.close()  # although the turn is not given back before
        for answer in given:
            with pytest.raises(UltraGistError, match="queue is closed"):
                answer.result(PATIENCE)
    with pytest.raises(UltraGistError, match="queue is closed"):
        queue.answer("the fox")
    assert queue.stats().n_refused == 4
    assert queue._worker is None
    queue.close()


def test_closing_lets_the_batch_that_runs_end(engine, prompts):
    queue, begun = engine.batching(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(queue.answer, prompts[1], max_new_tokens=50, on_token=lambda token: begun.set())
        assert begun.wait(PATIENCE)
        queue.close()
        assert facts(answer.result()) == facts(engine.answer(prompts[1], max_new_tokens=50))


def test_a_token_may_close_the_queue(engine):
    queue = engine.batching()
    assert queue.answer("the fox", max_new_tokens=3, on_token=lambda token: queue.close()).finish == "length"


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


async def test_a_cancelled_task_leaves_the_queue(engine):
    with engine.batching(max_wait=PATIENCE, max_batch=3) as queue:
        await queue.aanswer("the fox", max_new_tokens=2)
        task = asyncio.create_task(queue.aanswer("the fox", cancelled=lambda: False))
        await asyncio.to_thread(until, lambda: queue.stats().n_waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: queue.stats().n_left == 1)
        assert queue.stats().n_waiting == 0


def test_streams_are_rows_of_a_batch(engine, prompts):
    with engine.batching(max_wait=PATIENCE, max_batch=3) as queue:
        queue.answer("the fox", max_new_tokens=2)
        with ThreadPoolExecutor(3) as pool:
            shown = pool.map(lambda pieces: "".join(queue.stream(pieces, max_new_tokens=N, stop=["e"])), prompts[:3])
        assert list(shown) == [engine.answer(pieces, max_new_tokens=N, stop=["e"]).text for pieces in prompts[:3]]
        assert queue.stats().batches == {1: 1, 3: 1}


def test_a_stream_that_is_closed_leaves_the_batch_and_mistakes_show_before_the_first_piece(engine):
    with engine.batching(max_wait=0.0) as queue:
        with queue.stream("the fox", max_new_tokens=3000) as stream:
            next(stream)
        until(lambda: queue.stats().n_left == 1)
        with pytest.raises(InputError):
            queue.stream("the fox", num_beams=2)
        with pytest.raises(ContextOverflowError):
            queue.stream("a" * 5000)
        late = queue.stream("the fox", timeout=0.01)
        with turn(engine), pytest.raises(RequestTimeoutError):
            next(late)


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
