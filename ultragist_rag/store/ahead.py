"""Read several things in order, with some of them under way in threads.

Is        a generator over calls in the background.
Flow      background -> [ahead] -> shelf. Imports no torch.
Holds     results and errors come in the order of what was asked for; what nobody waits for any more is not begun, and
          what is under way is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice
from typing import TypeVar

from ultragist_rag.background import in_background

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
    if min(n_readers, len(wanted)) < 2:
        yield from map(read, wanted)
        return
    waiting: deque[Future[_Read]] = deque()
    rest = iter(wanted)

    def start(count: int) -> None:
        waiting.extend(in_background(partial(read, one), "ultragist-read") for one in islice(rest, count))

    try:
        start(n_readers)
        while waiting:
            yield waiting.popleft().result()
            start(1)
    finally:
        wait(waiting)
