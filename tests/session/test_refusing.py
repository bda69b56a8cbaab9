"""What a session refuses leaves it where and as it was."""

from __future__ import annotations

import pytest
from talking import SIZES, fill, same

from ultragist_rag import GistSession, GistStore, InputError


def test_a_save_that_another_store_refuses_moves_nothing(tmp_path, own_secret, text_engine):
    store = GistStore.open(tmp_path)
    other = text_engine.session(**SIZES, store=store, name="taken")
    other.save()
    session = text_engine.session(**SIZES, name="mine")
    fill(session, 5)
    home = session.store
    with pytest.raises(InputError, match="taken"):
        session.save("taken", store)
    assert (session.store, session.name) == (home, "mine")
    session.save()
    assert same(GistSession.load(text_engine, home, "mine"), session)


def test_a_store_that_is_not_open_and_embeddings_that_are_none_are_refused(text_engine):
    calls = (
        lambda: text_engine.session(store="./chats"),
        lambda: text_engine.session(embeddings="hashing"),
        lambda: text_engine.session().save("x", "./chats"),
        lambda: GistSession.names("./chats"),
        lambda: GistSession.load(text_engine, "./chats", "x"),
    )
    for call in calls:
        with pytest.raises((InputError, TypeError), match=r"chats|hashing"):
            call()
