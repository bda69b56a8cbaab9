"""Whatever was done to a session, it is the session that its turns and pins alone would have made."""

import random

import pytest
from talking import CHATML, SIZES, same

from ultragist_rag import ContextOverflowError
from ultragist_rag.session import GistSession, pages
from ultragist_rag.store import GistStore

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


def made_anew(session, engine):
    fresh = engine.session(**SIZES, template=session._maker.rendering.kind)
    for turn in session.turns():
        number = fresh.append(turn.role, turn.content)
        if turn.pinned:
            fresh.pin(number)
    return fresh


def do_something(session, draw, number):
    """Change a session in one way; return the session to go on with."""
    ids = [turn.id for turn in session.turns()]
    what = draw.choice(("append", "append", "ask", "ask", "forget", "pin", "unpin", "rewind", "fork", "save"))
    if what == "append" or len(ids) < 5:
        session.append(draw.choice(("user", "assistant")), f"{number} " + "so " * draw.randrange(14))
    elif what == "ask":
        session.ask(f"{number} " + "why " * draw.randrange(9), max_new_tokens=draw.randrange(1, 9))
    elif what == "forget":
        session.forget(draw.choice(ids))
    elif what == "rewind":
        session.rewind(draw.choice(ids[-3:]))
    elif what == "fork":
        return session.fork()
    elif what == "save":
        name = session.name or f"name{number}"
        session.save(name)
        return GistSession.load(session._maker.engine, session.store, name, background=session._background)
    else:
        try:
            session.pin(draw.choice(ids), what == "pin")
        except ContextOverflowError:
            assert session.stats().n_pinned > 0
    return session


@pytest.mark.parametrize(("seed", "template"), [(3, "chat"), (4, "plain")])
def test_memories_that_are_made_in_the_background_are_those_that_are_made_at_once(
    seed, template, text_engine, monkeypatch
):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    monkeypatch.setattr(pages, "_N_TURNS", 6)
    sessions, draws = [], [random.Random(seed), random.Random(seed)]
    for background in (True, False):
        store = GistStore.open("memory://")
        sessions.append(text_engine.session(**SIZES, template=template, store=store, background=background))
    for number in range(40):
        sessions = [do_something(session, draw, number) for session, draw in zip(sessions, draws, strict=True)]
        if number % 5 == 4:
            one, other = sessions
            assert one.turns() == other.turns()
            assert one.stats() == other.stats()
            assert {part: held.ratio for part, held in one._state.held.items()} == other._state.wanted
            assert one._state.wanted == other._state.wanted
    assert same(*sessions)


@pytest.mark.parametrize(("seed", "template"), [(0, "chat"), (1, "plain"), (2, "chat")])
def test_a_session_is_what_its_turns_make_it(seed, template, text_engine, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    monkeypatch.setattr(pages, "_N_TURNS", 6)
    draw = random.Random(seed)
    session = text_engine.session(**SIZES, template=template, store=GistStore.open("memory://"))
    for number in range(60):
        session = do_something(session, draw, number)
        assert session.stats().n_slots <= SIZES["slots"]
        if number % 20 == 19:
            fresh = made_anew(session, text_engine)
            assert fresh.stats().n_segments == session.stats().n_segments
            assert same(session, fresh)
