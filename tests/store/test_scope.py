"""Inside a scope, texts refer only to what the store handed out there."""

import asyncio
import contextvars
import threading

import pytest
from patience import PATIENCE

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import marker_scope, neutralise, to_marker
from ultragist_rag.store.scope import current_scope

TEXTS = ["The first document.", "A second, longer document about Bahrain."]


def is_read(store, engine, marker):
    pieces = store.resolve(engine, f"x {marker}")
    assert pieces[0] == "x " if len(pieces) > 1 else pieces == [f"x {neutralise(marker)}"]
    return isinstance(pieces[-1], GistMemory)


@pytest.fixture
def old(store, engine):
    return store.get_or_compress(engine, TEXTS[:1])[0]


def test_only_markers_handed_out_in_the_scope_are_read(store, engine, old):
    assert is_read(store, engine, old)
    with marker_scope() as scope:
        assert not is_read(store, engine, old)
        assert not is_read(store, engine, to_marker("a" * 26))
        assert store.expand_markers(f"see {old}") == f"see {neutralise(old)}"
        assert store.get(old, engine).slots  # asked for by id, not by a text
        (new,) = store.get_or_compress(engine, TEXTS[1:])
        assert is_read(store, engine, new)
        assert scope.markers == {new}
        assert (new.upper() in scope, old in scope, 3 in scope) == (True, False, False)
        assert store.expand_markers(f"see {new}") == f"see {TEXTS[1]}"
    assert is_read(store, engine, old)


@pytest.mark.parametrize(
    "find",
    [
        lambda store, engine: store.find(TEXTS[0], engine),
        lambda store, engine: store.put(engine.one(TEXTS[0]), text=TEXTS[0]),
        lambda store, engine: store.get_or_compress(engine, TEXTS[:1])[0],
    ],
)
def test_whatever_returns_a_marker_is_remembered(store, engine, old, find):
    with marker_scope():
        assert find(store, engine) == old
        assert is_read(store, engine, old)


def test_a_miss_is_not_remembered(store, engine):
    with marker_scope() as scope:
        assert store.find(TEXTS[0], engine) is None
        assert scope.markers == frozenset()


def test_a_marker_can_be_added(store, engine, old):
    with marker_scope() as scope:
        scope.add(old)
        assert is_read(store, engine, old)
        with pytest.raises(InputError, match="no marker"):
            scope.add("something")


def test_an_inner_scope_begins_empty_and_its_finds_travel_out(store, engine, old):
    with marker_scope() as outer:
        outer.add(old)
        with marker_scope():
            assert not is_read(store, engine, old)
            (new,) = store.get_or_compress(engine, TEXTS[1:])
        assert is_read(store, engine, old)
        assert is_read(store, engine, new)
    assert current_scope() is None


def test_threads_and_tasks_of_a_request_share_its_scope(store, engine, old):
    async def request(text):
        with marker_scope():
            marker = await asyncio.to_thread(lambda: store.get_or_compress(engine, [text])[0])
            await asyncio.sleep(0)
            return await asyncio.create_task(asyncio.to_thread(is_read, store, engine, marker)), marker

    async def both():
        return await asyncio.gather(*(request(text) for text in ("one", "two")))

    (one, _), (two, _) = asyncio.run(both())
    assert (one, two) == (True, True)
    with marker_scope() as scope:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(store.find, TEXTS[0], engine))
        thread.start()
        thread.join()
        assert scope.markers == {old}
        assert is_read(store, engine, old)


def test_requests_side_by_side_do_not_see_each_others_markers(store, engine):
    barrier = threading.Barrier(2)
    seen = {}

    def request(text, markers):
        with marker_scope():
            markers[text] = store.get_or_compress(engine, [text])[0]
            barrier.wait(PATIENCE)
            seen[text] = {name: is_read(store, engine, marker) for name, marker in markers.items()}

    markers = {}
    threads = [threading.Thread(target=request, args=(text, markers)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"one": {"one": True, "two": False}, "two": {"one": False, "two": True}}


def test_a_generator_closed_elsewhere_ends_its_scope_quietly(store):
    def stream():
        with marker_scope():
            yield 1

    stepping = stream()
    contextvars.copy_context().run(next, stepping)
    stepping.close()
    assert current_scope() is None
