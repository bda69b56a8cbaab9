"""Who may use an engine when: a bounded queue for requests, and calls from coroutines.

Is        `turn`, a place in the queue of an engine; `in_thread` and `iterate`, which keep an event loop free.
Flow      errors -> [requests] -> reader -> components of both frameworks.
Change    how requests wait, what ends them.
Not here  the lock that lets one forward run at a time -> engine; what a request does -> reader.py.
Holds     requests are served in the order in which they came; one that is refused, cancelled or late leaves no trace.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ultragist_rag.errors import QueueFullError, RequestTimeoutError

__all__ = ["Turn", "in_thread", "iterate", "turn"]

T = TypeVar("T")

_POLL = 0.05
"""Seconds between two looks at whether a waiting request is still wanted."""

_threads = ThreadPoolExecutor(max_workers=256, thread_name_prefix="ultragist")
"""More than wait in a queue, so that a full queue refuses at once; a thread is started when it is needed."""


class Turn:
    """A request on its way through the queue."""

    def __init__(self, timeout: float | None, cancelled: Callable[[], bool] | None) -> None:
        """Begin now; `turn` does."""
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._asked = cancelled
        self._is_over = self._is_late = False

    @property
    def waits_for_others(self) -> bool:
        """Whether something besides the queue can end the request."""
        return self._deadline is not None or self._asked is not None

    def cancelled(self) -> bool:
        """Say whether to stop, since nobody wants the answer or the time is over; once True, always True."""
        if not self._is_over:
            self._is_late = self._deadline is not None and time.monotonic() > self._deadline
            self._is_over = self._is_late or (self._asked is not None and self._asked())
        return self._is_over

    def check(self) -> None:
        """Raise an error if `cancelled` has said to stop because the time was over.

        Raises:
            RequestTimeoutError: If so.
        """
        if self._is_late:
            raise RequestTimeoutError(
                f"the request was not done after {self._timeout} seconds, waiting for other requests included. "
                "Allow more time, ask for fewer tokens, or send fewer requests at once."
            )


class _Queue:
    """Requests of one engine in order; the first one runs."""

    def __init__(self) -> None:
        self._requests: deque[Turn] = deque()
        self._changed = threading.Condition()

    def join(self, request: Turn, max_waiting: int) -> None:
        with self._changed:
            if self._requests and len(self._requests) > max_waiting:
                raise QueueFullError(
                    f"{len(self._requests) - 1} requests wait for the model, and max_waiting is {max_waiting}: "
                    "try again later, or raise max_waiting."
                )
            self._requests.append(request)

    def wait(self, request: Turn) -> None:
        """Return when it is the request's turn, or it is not wanted any more."""
        with self._changed:
            while self._requests[0] is not request and not request.cancelled():
                self._changed.wait(_POLL if request.waits_for_others else None)

    def leave(self, request: Turn) -> None:
        with self._changed:
            self._requests.remove(request)
            self._changed.notify_all()


_queues: WeakKeyDictionary[Any, _Queue] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def turn(
    engine: Any,
    *,
    max_waiting: int = 64,
    timeout: float | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Turn]:
    """Wait for one's turn with an engine, and keep it until the block ends.

    A request that is cancelled while it waits enters the block at once, but without the turn: ask `cancelled()` first.

    Args:
        engine: The engine; each has a queue of its own.
        max_waiting: Requests that may wait beside the one that runs.
        timeout: Seconds from now on that waiting and the block together may take.
        cancelled: Asked now and then while waiting; True leaves the queue.

    Yields:
        The request. Its `cancelled()` is to be given to decoding; `check()` raises an error if the time was over.

    Raises:
        QueueFullError: If so many requests wait already; at once.
        RequestTimeoutError: If the time is over while waiting.

    Example:
        >>> class Engine: ...
        >>> with turn(Engine(), timeout=60.0) as request:
        ...     request.cancelled()
        False
    """
    with _lock:
        queue = _queues.setdefault(engine, _Queue())
    request = Turn(timeout, cancelled)
    queue.join(request, max_waiting)
    try:
        queue.wait(request)
        request.check()
        yield request
    finally:
        queue.leave(request)


async def in_thread(call: Callable[[Callable[[], bool]], T]) -> T:
    """Run a call in a thread, with the context variables of this task.

    Args:
        call: Given a function that says whether the task was cancelled meanwhile.

    Returns:
        What the call returns.
    """
    abandoned = threading.Event()
    context = contextvars.copy_context()
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, context.run, call, abandoned.is_set)
    finally:
        abandoned.set()


async def iterate(make_stream: Callable[[Callable[[], bool]], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Read a stream in a thread of its own, with the context variables of this task.

    The stream is made, read and closed by one thread, which never waits for the reader.

    Args:
        make_stream: Given a function that says whether nobody reads any more; returns the stream.

    Yields:
        What the stream gives. Closing this iterator ends and closes the stream, at the latest before its next item.
    """
    loop = asyncio.get_running_loop()
    abandoned = threading.Event()
    items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def hand(kind: str, item: Any = None) -> None:
        try:
            loop.call_soon_threadsafe(items.put_nowait, (kind, item))
        except RuntimeError:  # the loop is closed, so nobody reads
            abandoned.set()

    def read() -> None:
        try:
            _read(make_stream(abandoned.is_set), abandoned, hand)
            hand("end")
        except BaseException as error:
            hand("error", error)

    context = contextvars.copy_context()
    loop.run_in_executor(_threads, context.run, read)
    try:
        while True:
            kind, item = await items.get()
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        abandoned.set()


def _read(stream: Iterator[Any], abandoned: threading.Event, hand: Callable[[str, Any], None]) -> None:
    try:
        for item in stream:
            if abandoned.is_set():
                break
            hand("item", item)
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
