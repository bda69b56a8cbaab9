"""Do something in a thread of its own while the caller goes on.

Is        `in_background`, a call whose result is waited for later.
Flow      [background] -> store/filling, store/ahead, session/conversation.
Change    what a thread takes along from its caller.
Not here  threads for coroutines -> requests.py; threads that decode -> memory/stream.py, batching/queue.py.
Holds     the thread ends with the call.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background"]

T = TypeVar("T")


def in_background(call: Callable[[], T], name: str) -> Future[T]:
    """Run a call in a thread that ends with it, with the context variables of the caller.

    Args:
        call: What to do.
        name: Of the thread.

    Returns:
        What comes of it: `result()` waits, and raises what went wrong.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name=name).start()
    return future
