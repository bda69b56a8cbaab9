import asyncio
import contextvars
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import PATIENCE, until

from ultragist_rag.errors import QueueFullError, RequestTimeoutError
from ultragist_rag.requests import _queues, in_thread, iterate, turn


class Engine:
    """Something to wait for."""


def n_queued(engine):
    queue = _queues.get(engine)
    return len(queue._requests) if queue else 0


def test_requests_are_served_one_at_a_time_in_the_order_in_which_they_came():
    engine, served, running = Engine(), [], []

    def request(number):
        with turn(engine):
            running.append(number)
            assert running == [number]
            served.append(number)
            running.clear()

    with ThreadPoolExecutor(6) as pool, turn(engine):
        for number in range(6):
            pool.submit(request, number)
            until(lambda: n_queued(engine) == 2 + number)  # noqa: B023 - called within the round
    assert served == list(range(6))
    assert n_queued(engine) == 0


def test_a_full_queue_refuses_at_once_and_goes_on():
    engine = Engine()
    with ThreadPoolExecutor(1) as pool:
        with turn(engine, max_waiting=1):
            waiting = pool.submit(lambda: turn(engine, max_waiting=1).__enter__())
            until(lambda: n_queued(engine) == 2)
            with pytest.raises(QueueFullError, match="1 requests wait"), turn(engine, max_waiting=1):
                pass
        assert not waiting.result(PATIENCE).cancelled()
    with turn(Engine(), max_waiting=0):  # nobody has to wait
        pass


def test_engines_have_queues_of_their_own_which_go_with_them():
    engine, other = Engine(), Engine()
    with turn(engine), turn(other, max_waiting=0):
        gone = weakref.ref(engine)
        assert n_queued(engine) == 1
    del engine
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
def test_a_request_that_is_cancelled_or_late_while_waiting_leaves_the_queue(how):
    engine, asked = Engine(), threading.Event()

    def wait():
        options = {"cancelled": asked.is_set} if how == "cancelled" else {"timeout": 0.01}
        with turn(engine, **options) as request:
            return request.cancelled()

    with ThreadPoolExecutor(1) as pool, turn(engine):
        waiting = pool.submit(wait)
        if how == "cancelled":
            until(lambda: n_queued(engine) == 2)
            asked.set()
            assert waiting.result(PATIENCE)
        else:
            with pytest.raises(RequestTimeoutError, match="not done after"):
                waiting.result(PATIENCE)
        assert n_queued(engine) == 1


def test_a_request_learns_that_its_time_is_over_while_it_runs():
    with turn(Engine(), timeout=0.01) as request:
        request.check()
        until(request.cancelled)
        with pytest.raises(TimeoutError):
            request.check()


def test_a_cancelled_request_stays_cancelled_and_is_not_late():
    answers = iter([True, False])
    with turn(Engine(), timeout=PATIENCE, cancelled=lambda: next(answers)) as request:
        assert request.cancelled()
        assert request.cancelled()
        request.check()


def test_an_error_gives_the_turn_back():
    engine = Engine()
    with pytest.raises(ZeroDivisionError), turn(engine):
        1 / 0  # noqa: B018
    assert n_queued(engine) == 0


NAME = contextvars.ContextVar("name", default="nobody")


async def test_a_call_runs_in_another_thread_with_the_context_of_the_task():
    NAME.set("task")
    thread, name = await in_thread(lambda cancelled: (threading.get_ident(), NAME.get()))
    assert (thread != threading.get_ident(), name) == (True, "task")
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda cancelled: 1 / 0)


async def test_the_event_loop_goes_on_during_a_call():
    event = threading.Event()
    call = asyncio.create_task(in_thread(lambda cancelled: event.wait(PATIENCE)))
    await asyncio.sleep(0)
    event.set()
    assert await call


async def test_cancelling_a_task_ends_its_call():
    started, ended = threading.Event(), threading.Event()

    def call(cancelled):
        started.set()
        until(cancelled)
        ended.set()

    task = asyncio.create_task(in_thread(call))
    await asyncio.to_thread(started.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, PATIENCE)


class Numbers:
    """A stream that notes who reads and closes it."""

    def __init__(self, cancelled, n=None):
        self.cancelled, self.n, self.next = cancelled, n, 0
        self.closed = threading.Event()
        self.threads = set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.get_ident())
        if self.next == self.n:
            raise StopIteration
        if self.next > 2 and self.n is None:
            until(self.cancelled)
        self.next += 1
        return self.next

    def close(self):
        self.threads.add(threading.get_ident())
        self.closed.set()


async def test_a_stream_is_read_to_its_end_by_one_other_thread():
    made = []

    def make(cancelled):
        made.append(Numbers(cancelled, n=5))
        made[0].threads.add(threading.get_ident())
        return made[0]

    assert [number async for number in iterate(make)] == [1, 2, 3, 4, 5]
    assert made[0].closed.is_set()
    assert len(made[0].threads) == 1
    assert threading.get_ident() not in made[0].threads


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_a_stream_that_nobody_reads_any_more_is_closed(how):
    made = []

    def make(cancelled):
        made.append(Numbers(cancelled))
        return made[0]

    stream = iterate(make)
    assert await anext(stream) == 1
    if how == "closed":
        await stream.aclose()
    else:

        async def read():
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(made[0].closed.wait, PATIENCE)


async def test_errors_of_a_stream_come_where_they_happen():
    def numbers(cancelled):
        yield 1
        raise ValueError("two")

    stream = iterate(numbers)
    assert await anext(stream) == 1
    with pytest.raises(ValueError, match="two"):
        await anext(stream)
    with pytest.raises(ZeroDivisionError):
        await anext(iterate(lambda cancelled: 1 / 0))


def test_a_loop_that_is_gone_ends_the_stream():
    made = []

    async def read_one():
        def make(cancelled):
            made.append(Numbers(cancelled))
            return made[0]

        return await anext(iterate(make))

    assert asyncio.run(read_one()) == 1
    assert made[0].closed.wait(PATIENCE)
