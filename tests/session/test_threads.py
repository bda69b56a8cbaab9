"""Equal texts give equal markers, whether their session was held or not; stores share no session."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ultragist_rag import ContextOverflowError, GistConfig, GistStore, InputError
from ultragist_rag.session import ThreadSessions
from ultragist_rag.session.threads import _ladder
from ultragist_rag.store import marker_scope


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


def texts_of(thread: str, n_texts: int) -> list[str]:
    return [f"user: {thread} asks question {number} of many." for number in range(n_texts)]


def test_a_thread_that_is_not_held_any_more_is_made_again(text_engine: Any, store: GistStore) -> None:
    sessions = ThreadSessions(slots=64)
    first = {name: sessions.get(text_engine, store, name).markers_of(texts_of(name, 9)) for name in "abcdef"}
    again = {name: sessions.get(text_engine, store, name) for name in "fedcba"}
    assert {name: session.markers_of(texts_of(name, 9)) for name, session in again.items()} == first
    assert len(sessions._held) < 6
    assert sessions.get(text_engine, store, "a") is again["a"]
    assert again["f"] is not sessions.get(text_engine, store, "f")


def test_what_is_said_twice_stands_twice_and_ratios_fall_towards_the_end(text_engine: Any, store: GistStore) -> None:
    session = ThreadSessions(slots=64, ratio=2).get(text_engine, store, "a")
    rows = session.markers_of(["Yes, please do that."] * 12)
    ratios = [store.source(row[0]).recipe.ratios[0] for row in rows if row]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == 2 < ratios[0]
    assert rows[-1] == rows[-2]
    assert session.markers_of([]) == []
    assert session.turns() == []


def test_the_oldest_are_left_out_with_one_warning_in_the_log(
    text_engine: Any, store: GistStore, caplog: pytest.LogCaptureFixture
) -> None:
    session = ThreadSessions(slots=24).get(text_engine, store, "a")
    with caplog.at_level(logging.WARNING):
        for n_texts in range(1, 12):
            rows = session.markers_of(texts_of("a", n_texts))
            assert sum(store.get(marker).slots for row in rows for marker in row) <= 24
    assert not rows[0]
    assert rows[-1]
    assert len([record for record in caplog.records if record.name.endswith("threads")]) == 1
    assert store.records.names("page") == store.records.names("session") == []


def test_markers_are_handed_out_to_the_scope_of_each_request(text_engine: Any, store: GistStore) -> None:
    sessions = ThreadSessions()
    for _ in range(2):
        with marker_scope() as scope:
            rows = sessions.get(text_engine, store, "a").markers_of(texts_of("a", 3))
            assert scope.markers == {marker for row in rows for marker in row}


def test_requests_of_several_threads_at_once_do_not_mix(text_engine: Any, store: GistStore) -> None:
    sessions = ThreadSessions(slots=64)

    def ask(number: int) -> list[list[str]]:
        name = "abcdef"[number % 6]
        return sessions.get(text_engine, store, name).markers_of(texts_of(name, 1 + number // 6))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(18)))
    assert found == [
        ThreadSessions(slots=64).get(text_engine, store, "x").markers_of(texts_of("abcdef"[n % 6], 1 + n // 6))
        for n in range(18)
    ]


def test_numbers_that_cannot_be_are_refused(text_engine: Any, store: GistStore) -> None:
    for settings in ({"slots": 0}, {"ratio": 1}):
        with pytest.raises(InputError, match=next(iter(settings))):
            ThreadSessions(**settings)
    with pytest.raises(ContextOverflowError, match="positions"):
        ThreadSessions(slots=text_engine.max_positions).get(text_engine, store, "a")


def test_ratios_rise_through_those_of_the_config() -> None:
    assert _ladder(GistConfig(window=64, ratio=4, ratios=(2, 4, 8), ratio_policy="step-random"), 2) == [2, 4, 8]
    assert _ladder(GistConfig(window=64, ratio=4), 2) == [2, 4, 8, 16]
