"""Sessions whose memories are recurrent."""

from architectures import ARCHITECTURES
from talking import SIZES, fill, same

from ultragist_rag import GistConfig, UltraGist
from ultragist_rag.session import GistSession
from ultragist_rag.store import GistStore
from ultragist_rag.testing import tiny_model


def test_a_session_with_recurrent_memories_is_saved_loaded_and_goes_on(tmp_path, own_secret, text_engine):
    tokenizer, store = text_engine.tokenizer, GistStore.open(tmp_path)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=4096)
    config = GistConfig(window=64, ratio=4, lead_token=1, **ARCHITECTURES["coarse-recurrent"])
    with UltraGist.attach(model, tokenizer, config) as engine:
        session = engine.session(**SIZES, template="plain", store=store, name="any")
        fill(session, 12)
        session.save()
        loaded = GistSession.load(engine, store, "any")
        assert same(loaded, session)
        for one in (session, loaded):
            one.forget(2)
            fill(one, 2, 12)
        assert same(loaded, session)
        assert session.ask("and now?", max_new_tokens=3) == loaded.ask("and now?", max_new_tokens=3)
