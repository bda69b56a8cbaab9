"""Read several things in order, with some of them under way in threads.

Is        a generator over a small pool of threads.
Flow      [ahead] -> shelf. Imports no torch.
Holds     results and errors come in the order of what was asked for; what nobody waits for any more is not begun;
          what is read sees the context variables of who asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import islice
from typing import TypeVar

__all__ = ["read_ahead"]

_Wanted = TypeVar("_Wanted")
_Read = TypeVar("_Read")


def read_ahead(
    read: Callable[[_Wanted], _Read], wanted: Sequence[_Wanted], n_readers: int
) -> Generator[_Read, None, None]:
    """Call `read` for each of some things, several at a time.

    Args:
        read: May wait for a disk or the network; called in other threads if there is more than one thing.
        wanted: The things.
        n_readers: Calls at a time at most; with 1 all are made in turn, where the result is asked for.

    Yields:
        What `read` returned, in order; what it raised is raised in its turn.
    """
    n_threads = min(n_readers, len(wanted))
    if n_threads < 2:
        yield from map(read, wanted)
        return
    pool = ThreadPoolExecutor(n_threads, "ultragist-read")

    def start(one: _Wanted) -> Callable[[], _Read]:
        try:
            return pool.submit(copy_context().run, read, one).result
        except RuntimeError:  # the interpreter is about to end, and begins no threads any more
            return partial(read, one)

    try:
        rest = iter(wanted)
        waiting = deque(map(start, islice(rest, n_threads)))
        while waiting:
            yield waiting.popleft()()
            waiting.extend(map(start, islice(rest, 1)))
    finally:
        pool.shutdown(cancel_futures=True)
