"""Do something in a thread of its own while the caller goes on."""

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
