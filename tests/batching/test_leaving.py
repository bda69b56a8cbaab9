"""Requests that are cancelled, late or refused, and queues that are closed: nobody else notices, and nothing hangs."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import PATIENCE, until
from together import N, facts, held

from ultragist_rag.batching import request
from ultragist_rag.errors import ContextOverflowError, InputError, QueueFullError, RequestTimeoutError, UltraGistError
from ultragist_rag.memory import rows
from ultragist_rag.requests import turn


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


def test_a_request_that_is_late_for_its_sources_is_late(engine, prompts, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(request, "with_sources", lambda engine, prompts, answers, kind: gate.wait(PATIENCE) and answers)
    with engine.batching() as queue:
        with pytest.raises(RequestTimeoutError):
            queue.answer(prompts[1], sources="attention", max_new_tokens=1, timeout=0.5)
        gate.set()
    assert (queue.stats().n_left, queue.stats().n_answered) == (1, 0)


def test_a_beam_search_that_is_cancelled_ends(engine, prompts, monkeypatch):
    calls, lengths, search = [], [], request.answer

    def noting(*args):
        answers = search(*args)
        lengths.extend(len(one.ids) for one in answers[0])
        return answers

    def cancelled():
        calls.append(None)
        return len(calls) > 4

    monkeypatch.setattr(request, "answer", noting)
    with engine.batching() as queue:
        answer = queue.answer(prompts[1], num_beams=2, max_new_tokens=2000, cancelled=cancelled)
    assert answer.finish == "cancelled"
    assert max(lengths, default=0) < 10


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
