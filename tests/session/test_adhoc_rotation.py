import pytest
from talking import CHATML, SIZES, fill, same
from ultragist_rag.session import GistSession, pages
from ultragist_rag.store import GistStore

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


def test_a_session_moves_with_its_store(text_engine, tmp_path, own_secret, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    monkeypatch.setattr(pages, "_N_TURNS", 8)
    store = GistStore.open(tmp_path)
    session = text_engine.session(**SIZES, template="chat", store=store, name="long")
    fill(session, 20)
    session.save()
    report = store.rotate("a third secret of the tests", drop=True)
    print(len(report.markers), report.n_without_source, report.n_records)
    loaded = GistSession.load(text_engine, store, "long")
    print(loaded.stats().n_compressed_tokens)
    assert loaded.turns() == session.turns()
    assert same(loaded, session)
