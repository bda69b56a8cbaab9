"""How long tests wait for other threads, however busy the machine is."""

import threading
import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which a test that hangs fails."""


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)
