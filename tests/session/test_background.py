"""What an answer pushes out of the recent turns is compressed while its reader is busy with it."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from patience import PATIENCE, until
from talking import CHATML, SIZES, fill, same

from ultragist_rag.session import GistSession
from ultragist_rag.store import GistStore

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


@pytest.fixture(scope="module")
def engine(text_engine):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_engine.tokenizer, "chat_template", CHATML)
        yield text_engine


@pytest.fixture
def session(engine):
    until(lambda: not threads())  # of the test before
    session = engine.session(**SIZES, store=GistStore.open("memory://"))
    fill(session, 8)
    return session


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ultragist-session"]


def made_at_once(session):
    """The session with the same turns that makes its memories at once."""
    fresh = session._maker.engine.session(**SIZES, background=False)
    for turn in session.turns():
        number = fresh.append(turn.role, turn.content)
        if turn.pinned:
            fresh.pin(number)
    return fresh


@contextmanager
def held_up(monkeypatch, session):
    """Let no segment of a session be compressed before the block ends."""
    maker, gate, compress = session._maker, threading.Event(), session._maker._compress
    del session  # some tests drop it meanwhile

    def wait(*args):
        assert gate.wait(PATIENCE)
        return compress(*args)

    monkeypatch.setattr(maker, "_compress", wait)
    try:
        yield
    finally:
        gate.set()


def fail(monkeypatch, session, times):
    """Let compressing fail some times."""
    compress, left = session._maker._compress, [RuntimeError("out of memory")] * times

    def failing(*args):
        if left:
            raise left.pop()
        return compress(*args)

    monkeypatch.setattr(session._maker, "_compress", failing)


READERS = {
    "turns": lambda session: session.turns(),
    "stats": lambda session: session.stats(),
    "pieces": lambda session: session.pieces("what?"),
    "ask": lambda session: session.ask("what?", max_new_tokens=3),
    "append": lambda session: session.append("user", "more"),
    "save": lambda session: session.save("name"),
    "fork": lambda session: session.fork(),
    "pin": lambda session: session.pin(session._now.turns[-1].id),
    "forget": lambda session: session.forget(session._now.turns[0].id),
    "rewind": lambda session: session.rewind(session._now.turns[-1].id),
    "sync": lambda session: session.sync([("key", "user", "text")]),
    "recent_keys": lambda session: session.recent_keys(),
}


@pytest.mark.parametrize("name", READERS)
def test_an_answer_does_not_wait_for_its_memories_and_whoever_needs_them_does(session, monkeypatch, name):
    with ThreadPoolExecutor(1) as pool, held_up(monkeypatch, session):
        session.ask("a question that pushes other turns out", max_new_tokens=8)
        assert len(threads()) == 1
        reading = pool.submit(READERS[name], session)
        with pytest.raises(TimeoutError):
            reading.result(0.05)
    reading.result()
    assert same(session, made_at_once(session))


def test_a_stream_that_was_read_does_not_wait_either(session, monkeypatch):
    with held_up(monkeypatch, session):
        assert "".join(session.ask("a question that pushes other turns out", stream=True, max_new_tokens=8))
        assert len(threads()) == 1
    assert same(session, made_at_once(session))


def test_without_it_an_answer_waits(engine, monkeypatch):
    session = engine.session(**SIZES, background=False)
    fill(session, 8)
    with ThreadPoolExecutor(1) as pool, held_up(monkeypatch, session):
        asking = pool.submit(session.ask, "a question that pushes other turns out", max_new_tokens=8)
        with pytest.raises(TimeoutError):
            asking.result(0.2)
    assert asking.result() == session.turns()[-1].content


@pytest.mark.parametrize("name", READERS)
def test_an_error_comes_with_the_next_call_and_only_once_and_nothing_is_lost(session, monkeypatch, name):
    fail(monkeypatch, session, times=1)
    answer = session.ask("a question that pushes other turns out", max_new_tokens=8)
    with pytest.raises(RuntimeError, match="out of memory"):
        READERS[name](session)
    assert [turn.content for turn in session.turns()[-2:]] == ["a question that pushes other turns out", answer]
    READERS[name](session)
    assert same(session, made_at_once(session))


@pytest.mark.parametrize("name", ["rewind", "forget"])
def test_a_turn_that_can_never_be_compressed_can_be_taken_back(session, monkeypatch, name):
    before = len(session.turns())
    with monkeypatch.context() as patched:
        fail(patched, session, times=3)
        session.ask("a question that pushes other turns out", max_new_tokens=8)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="out of memory"):
                session.stats()
    fail(monkeypatch, session, times=0)
    getattr(session, name)(session._now.turns[before].id)
    assert len(session.turns()) == before + (name == "forget")
    assert same(session, made_at_once(session))


def test_an_answer_that_was_begun_before_an_error_is_kept(session, monkeypatch):
    stream = session.ask("a question that is answered slowly", stream=True, max_new_tokens=8)
    fail(monkeypatch, session, times=1)
    session.ask("a question that pushes other turns out", max_new_tokens=8)
    answer = "".join(stream)
    assert [turn.content for turn in session.turns()[-2:]] == ["a question that is answered slowly", answer.strip()]
    assert same(session, made_at_once(session))


def test_a_fork_that_waits_keeps_what_it_needs_when_another_is_saved(session, engine, monkeypatch):
    session.save("one")
    fork = session.fork("two")
    with ThreadPoolExecutor(1) as pool, held_up(monkeypatch, fork):
        fork.ask("a question that pushes other turns out", max_new_tokens=8)
        session.forget(0)
        saving = pool.submit(session.save)
        with pytest.raises(TimeoutError):
            saving.result(0.05)
    saving.result()
    fork.save()
    for name, kept in (("one", session), ("two", fork)):
        assert same(GistSession.load(engine, session.store, name), kept)


def test_the_error_of_a_fork_is_its_own(session, monkeypatch):
    fork = session.fork()
    fail(monkeypatch, fork, times=1)
    fork.ask("a question that pushes other turns out", max_new_tokens=8)
    session.save("one")
    with pytest.raises(RuntimeError, match="out of memory"):
        fork.stats()
    assert same(fork, made_at_once(fork))


def test_no_thread_outlives_its_work_and_none_keeps_a_session(engine, monkeypatch):
    session = engine.session(**SIZES)
    fill(session, 8)
    session.ask("a question that pushes other turns out", max_new_tokens=8)
    session.stats()
    until(lambda: not threads())
    with held_up(monkeypatch, session):
        session.ask("another one that pushes other turns out", max_new_tokens=8)
        gone = weakref.ref(session)
        del session
        gc.collect()
        assert gone() is None
    until(lambda: not threads())


def test_threads_that_share_a_session_lose_no_turn(session):
    n_before = len(session.turns())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: session.ask(f"question {number}", max_new_tokens=4), range(12)))
    assert len(session.turns()) == n_before + 24
    assert same(session, made_at_once(session))
