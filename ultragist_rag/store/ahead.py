"""Read several things in order, with some of them under way in threads.

Is        a generator over a small pool of threads.
Flow      [ahead] -> shelf. Imports no torch.
Change    how many are under way.
Holds     results and errors come in the order of what was asked for; what nobody waits for any more is not begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

__all__ = ["read_ahead"]

_THREADS = 8
_Wanted = TypeVar("_Wanted")
_Read = TypeVar("_Read")


def read_ahead(read: Callable[[_Wanted], _Read], wanted: Sequence[_Wanted]) -> Generator[_Read, None, None]:
    """Call `read` for each of some things, up to eight at a time.

    Args:
        read: May wait for a disk or the network; called in other threads if there is more than one thing.
        wanted: The things.

    Yields:
        What `read` returned, in order; what it raised is raised in its turn.
    """
    if len(wanted) < 2:
        yield from map(read, wanted)
        return
    with ThreadPoolExecutor(min(_THREADS, len(wanted)), "ultragist-read") as pool:
        rest = iter(wanted)
        waiting: deque[Future[_Read]] = deque(pool.submit(read, one) for one in islice(rest, _THREADS))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(read, one) for one in islice(rest, 1))
        finally:
            for one in waiting:
                one.cancel()
