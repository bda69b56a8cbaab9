import contextvars
import threading

import pytest

from ultragist_rag.background import in_background

NAME = contextvars.ContextVar("name", default="nobody")


def test_a_call_runs_in_a_thread_of_its_own_with_the_context_of_the_caller():
    NAME.set("caller")
    thread, name = in_background(lambda: (threading.current_thread(), NAME.get()), "somebody").result()
    assert (thread.name, name) == ("somebody", "caller")
    thread.join()


def test_what_goes_wrong_is_raised_to_whoever_asks():
    future = in_background(lambda: 1 / 0, "somebody")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            future.result()
