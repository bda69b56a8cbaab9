"""Memories of a session know their tokens, whether or not the store keeps texts."""

import pytest
from talking import CHATML, SIZES, fill

from ultragist_rag.session import GistSession
from ultragist_rag.store import GistStore


@pytest.mark.filterwarnings("ignore:the session has more turns")
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_memories_of_a_store_without_texts_know_their_tokens_again(
    template, tmp_path, own_secret, text_engine, monkeypatch
):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    store = GistStore.open(tmp_path, keep_source=False)
    session, twin = (text_engine.session(**SIZES, template=template, store=store, name=name) for name in ("one", "two"))
    fill(session, 20)
    session.save()
    fill(twin, 20)
    loaded = GistSession.load(text_engine, store, "one")
    live, found, read = (one._state.held for one in (session, twin, loaded))
    assert len(live) > 5
    assert all(store.get(one.marker).source_ids is None for one in read.values())
    for held in (found, read):
        assert {part: one.memory.source_ids.tolist() for part, one in held.items()} == {
            part: one.memory.source_ids.tolist() for part, one in live.items()
        }
