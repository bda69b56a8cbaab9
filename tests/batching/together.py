"""Requests that come while somebody else has the turn, so that it is known which of them share a batch."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from patience import until

from ultragist_rag.requests import turn

N = 8


def n_come(queue):
    """Requests that have come so far, wherever they are; while the turn is held, this only grows."""
    stats = queue.stats()
    return stats.n_waiting + stats.n_answered + stats.n_failed + stats.n_left + stats.n_refused


def facts(given):
    several = given if isinstance(given, list) else [given]
    return [(one.text, one.ids.tolist(), one.finish, one.n_slots, one.n_prompt_tokens) for one in several]


def settings_of(settings):
    return {"max_new_tokens": N, **settings}


@contextmanager
def held(engine, queue, *asked):
    """Start requests one after the other while somebody else has the turn; yield their futures."""
    with ThreadPoolExecutor(32) as pool, turn(engine):
        futures = []
        for place, (pieces, settings) in enumerate([(["first of all"], {}), *asked]):
            n_before = n_come(queue)
            futures.append(pool.submit(queue.answer, pieces, **settings_of(settings)))
            if place == 0:  # the engine is idle, so this one waits for the turn, as a batch of its own
                until(lambda: queue._worker is not None and not queue._waiting)
            else:
                until(lambda: n_come(queue) > n_before or futures[-1].done())  # noqa: B023 - at once
        yield futures[1:]
