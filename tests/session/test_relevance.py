"""What bears on a question is found, in the archive too, and fits into the slots."""

import numpy as np
import pytest
from talking import CHATML, SIZES, fill

from ultragist_rag import GistMemory, InputError
from ultragist_rag.layout.session_plan import Entry, SessionPlan
from ultragist_rag.rag import HashingEmbeddings
from ultragist_rag.session import GistSession, pages
from ultragist_rag.session.relevance import divide
from ultragist_rag.store import GistStore

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


@pytest.fixture(params=["chat", "plain"])
def session(request, text_engine, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    monkeypatch.setattr(pages, "_N_TURNS", 8)
    made = text_engine.session(**SIZES, template=request.param, embeddings=HashingEmbeddings(512))
    made.append("user", "my dentist is called Amavi")
    fill(made, 9)
    made.append("user", "the ferry to Aného leaves at seven")
    fill(made, 9, 10)
    return made


def memories(session, **settings):
    return [piece for piece in session.pieces(**settings) if isinstance(piece, GistMemory)]


def test_an_archived_segment_is_found_and_made_again_at_a_low_ratio(session):
    assert session.turns()[0].state == "archived"
    state = session._state
    chosen = session._select(state, "who is my dentist Amavi?", 2)
    assert (0, 0) in chosen
    assert chosen[0, 0].ratio == 4
    assert len(chosen) == 2
    assert sum(held.memory.slots for held in chosen.values()) <= 40
    assert session._state is state
    assert memories(session, question="who is my dentist Amavi?", select=2)[0].n_source_tokens == sum(
        state.turns[0].lengths[:1]
    )


def test_selected_segments_stand_in_reading_order_in_front_of_recent_ones(session):
    question = "when does the ferry to Aného leave, and who is my dentist?"
    chosen = session._select(session._state, question, 3)
    assert {(0, 0), (10, 0)} <= set(chosen)
    held = {id(one.memory): part for part, one in session._state.held.items()}
    shown = [held[id(memory)] for memory in memories(session, question=question, select=3) if id(memory) in held]
    assert shown == sorted(shown)
    (everything,) = (piece for piece in session.pieces(question)[-1:])
    assert session.pieces(question, select=3)[-1].equal(everything)  # recent turns and the question
    assert isinstance(session.ask(question, select=3, max_new_tokens=4), str)
    with session.ask(question, select=1, stream=True, max_new_tokens=4) as stream:
        assert "".join(stream) is not None


def test_pinned_turns_are_always_shown(session):
    session.pin(10)
    chosen = session._select(session._state, "who is my dentist?", 1)
    assert {(10, 0), (0, 0)} <= set(chosen)


def test_vectors_are_kept_with_their_pages_and_agree_with_new_ones(session, text_engine, tmp_path, own_secret):
    store = GistStore.open(tmp_path)
    session.save("kept", store)
    question = "who is my dentist Amavi?"
    best = session._relevance.best(session._state, question, 5, ())

    class Counting(HashingEmbeddings):
        n_texts = 0

        def embed_documents(self, texts):
            self.n_texts += len(texts)
            return super().embed_documents(texts)

    kept, other = Counting(512), Counting(512)
    other.name = "another name"
    for embeddings in (kept, other):
        loaded = GistSession.load(text_engine, store, "kept", embeddings=embeddings)
        assert loaded._relevance.best(loaded._state, question, 5, ()) == best
    n_segments = [len(turn.lengths) for turn in session._state.turns]
    n_in_rest = sum(n_segments[-len(session._state.archive.rest) :])
    assert kept.n_texts == n_in_rest + 1  # and the question
    assert other.n_texts == sum(n_segments) + 1


def test_what_cannot_be_selected_is_refused(session, text_engine):
    with pytest.raises(InputError, match="select is 0"):
        session.ask("x", select=0)
    with pytest.raises(InputError, match="give one"):
        session.pieces(select=2)
    with pytest.raises(InputError, match="no embeddings"):
        text_engine.session(**SIZES).ask("x", select=2)


def test_segments_take_the_lowest_ratio_at_which_all_fit():
    plan = SessionPlan(slots=100, ladder=(2, 4), window=16)
    entries = [Entry((number, 0), 16) for number in range(4)]
    for room, fitting in ((32, {2: 4}), (31, {4: 4}), (16, {4: 4}), (15, {4: 3}), (3, {})):
        ratios = list(divide(plan, entries, room).values())
        assert {ratio: ratios.count(ratio) for ratio in np.unique(ratios)} == fitting
    assert divide(plan, [], 0) == {}
