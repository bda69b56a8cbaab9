"""A session stays within its slots, and what was taken back has never been."""

import threading

import pytest
import torch
from talking import CHATML, SIZES, fill, same

from ultragist_rag import ContextOverflowError, GistMemory, InputError
from ultragist_rag.memory.verbatim import Surprisal
from ultragist_rag.session import GistSession
from ultragist_rag.store import GistStore

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


@pytest.fixture(params=["chat", "plain"])
def session(request, text_engine, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    return text_engine.session(**SIZES, template=request.param)


def another(session, **settings):
    sizes = SIZES | {"template": session._maker.rendering.kind}
    return session._maker.engine.session(**(sizes | settings))


def contents(session):
    return [(turn.role, turn.content) for turn in session.turns()]


def test_a_session_never_takes_more_slots_than_it_has_and_keeps_every_text(session):
    for number in range(28):
        assert fill(session, 1, number) == [number]
        stats = session.stats()
        memories = [piece for piece in session.pieces() if isinstance(piece, GistMemory)]
        assert stats.n_slots == sum(memory.slots for memory in memories) <= 40
        assert stats.n_recent_tokens >= min(stats.n_tokens, 40)
    assert stats.n_archived > 5
    assert set(stats.n_segments) == {4, 8}
    states = [turn.state for turn in session.turns() if turn.state != "mixed"]
    assert states == sorted(states)  # archived, compressed, recent
    assert [turn.content for turn in session.turns()][:2] == ["turn 0: 0", "turn 1: word 1"]


def test_only_new_and_moved_tokens_are_compressed(session):
    fill(session, 12)
    before, plan = session.stats(), session._state.plan.ratios()
    fill(session, 1, 12)
    moved = {part for part, ratio in session._state.plan.ratios().items() if plan.get(part) != ratio}
    lengths = {(turn.id, part): n for turn in session._state.turns for part, n in enumerate(turn.lengths)}
    assert session.stats().n_compressed_tokens - before.n_compressed_tokens == sum(lengths[part] for part in moved)
    assert session.stats().n_compressed_tokens <= 2 * session.stats().n_tokens


@pytest.mark.parametrize("n_turns", [6, 20])
def test_a_forgotten_turn_has_never_been(session, n_turns):
    other = another(session)
    gone = {0, 3, n_turns - 4, n_turns - 1}
    for number in range(n_turns):
        (turn,) = fill(session, 1, number)
        if number not in gone:
            fill(other, 1, number)
    assert not same(session, other)
    for turn in gone:
        session.forget(turn)
    assert contents(session) == contents(other)
    assert session.stats().n_segments == other.stats().n_segments
    assert same(session, other)
    assert fill(session, 1, 99) == [n_turns]


def test_rewinding_goes_back_to_the_moment_before_a_turn(session):
    other = another(session)
    fill(session, 20)
    fill(other, 11)
    session.rewind(11)
    assert contents(session) == contents(other)
    assert same(session, other)
    assert fill(session, 1, 11) == [20]  # numbers are not given twice
    fill(other, 1, 11)
    assert same(session, other)
    session.rewind(0)
    assert session.turns() == []
    assert same(session, another(session))


def test_a_pinned_turn_stays_at_the_lowest_ratio_until_it_is_unpinned(session):
    other = another(session)
    fill(session, 4)
    fill(other, 4)
    session.pin(1)
    fill(session, 18, 4)
    fill(other, 18, 4)
    assert session._state.held[1, 0].ratio == 4
    assert session.turns()[1].pinned
    assert session.stats().n_pinned == 1
    assert session.turns()[1].state == "compressed"
    assert other.turns()[1].state == "archived"
    assert not same(session, other)
    session.pin(1, False)
    assert same(session, other)


def test_one_warning_says_that_the_archive_has_begun(session):
    with pytest.warns(UserWarning, match="in the archive only") as caught:
        fill(session, 25)
    assert len(caught) == 1


def test_more_pins_than_slots_are_refused(session):
    turns = [session.append("user", "x" * 60) for _ in range(4)]
    session.pin(turns[0])
    session.pin(turns[1])
    before = session.turns()
    with pytest.raises(ContextOverflowError, match="unpin"):
        session.pin(turns[3])
    assert session.turns() == before
    fill(session, 3)


def test_a_fork_goes_on_by_itself(session):
    fill(session, 8)
    fork = session.fork()
    assert same(session, fork)
    before = contents(session)
    fill(fork, 3, 50)
    fork.forget(2)
    assert contents(session) == before
    other = another(session)
    for number in (0, 1, 3, 4, 5, 6, 7):
        fill(other, 1, number)
    fill(other, 3, 50)
    assert same(fork, other)
    assert not same(fork, session)


def test_question_and_answer_become_turns(session):
    fill(session, 5)
    answer = session.ask("what was turn 2?", max_new_tokens=6)
    assert contents(session)[-2:] == [("user", "what was turn 2?"), ("assistant", answer)]
    assert contents(session)[-2:] != contents(session)[-4:-2]


def test_a_stream_gives_what_asking_gives_and_keeps_what_was_said(session):
    fill(session, 5)
    fork, short = session.fork(), session.fork()
    answer = session.ask("again?", max_new_tokens=12)
    with fork.ask("again?", stream=True, max_new_tokens=12) as stream:
        pieces = list(stream)
    assert "".join(pieces).strip() == answer
    assert contents(fork) == contents(session)
    stream = short.ask("again?", stream=True, max_new_tokens=200, eos_token_id=[], min_new_tokens=200)
    said = next(stream) + next(stream)
    stream.close()
    assert list(stream) == []
    assert contents(short)[-2:] == [("user", "again?"), ("assistant", said.strip())]


def test_errors_change_nothing(session, monkeypatch):
    fill(session, 6)
    before = contents(session)
    with pytest.raises(InputError):
        session.ask("x", temperature=-1)
    with pytest.raises(ContextOverflowError):
        session.ask("x" * 5000)
    with pytest.raises(InputError, match="role"):
        session.append("a role", "x")
    with pytest.raises(InputError, match="no turn 77"):
        session.forget(77)
    session.ask("never read", stream=True).close()

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session._maker.engine, "compress", broken)
        with pytest.raises(RuntimeError):
            session.append("user", "x" * 50)
    assert contents(session) == before


def test_turns_of_somebody_else_are_followed(session):
    listed = [(f"k{n}", "user", f"text {n}: {n**3}") for n in range(12)]
    session.sync(listed)
    assert [turn.key for turn in session.turns()] == [key for key, _, _ in listed]
    fewer = [turn for turn in listed if turn[0] not in ("k2", "k11")] + [("new", "user", "and this")]
    session.sync(fewer)
    other = another(session)
    for _, role, content in fewer:
        other.append(role, content)
    assert same(session, other)
    n_tokens = session.stats().n_compressed_tokens
    session.sync(fewer)
    assert session.stats().n_compressed_tokens == n_tokens
    changed = [*fewer[:4], ("k5", "user", "edited"), *fewer[5:]]
    session.sync(changed)
    assert contents(session) == [(role, content) for _, role, content in changed]
    with pytest.raises(InputError, match="key comes twice"):
        session.sync([("k", "user", "a"), ("k", "user", "b")])


def test_settings_that_do_not_fit_the_model_are_refused(text_engine):
    with pytest.raises(ContextOverflowError, match="may need"):
        text_engine.session(slots=4000)
    with pytest.raises(InputError, match="ladder"):
        text_engine.session(slots=100, ladder=(8, 4))
    with pytest.raises(InputError, match="segment_tokens"):
        text_engine.session(slots=100, segment_tokens=0)
    for wrong in ({"slots": "9"}, {"slots": True}, {"recent": 2.0}, {"segment_tokens": 1.5}, {"ladder": 4}):
        with pytest.raises((InputError, TypeError), match=next(iter(wrong))):
            text_engine.session(**wrong)
    settings = text_engine.session().settings
    assert (settings.slots, settings.recent, settings.ladder, settings.segment_tokens) == (2048, 512, (4, 8), 64)


@pytest.mark.parametrize(
    "policy", ["nothing of this name", 5, Surprisal(), lambda text, offsets: [True] * len(offsets)]
)
def test_a_policy_that_cannot_be_saved_is_refused_at_the_beginning(text_engine, policy):
    with pytest.raises((InputError, TypeError), match=r"policy|verbatim"):
        text_engine.session(slots=100, verbatim=policy)


def test_what_is_no_text_and_no_tool_call_is_refused(session):
    before = session.turns()
    with pytest.raises(InputError, match="decode its bytes"):
        session.append("user", "\ud800")
    for calls in ("abc", [5], {"name": "f"}):
        with pytest.raises((InputError, TypeError), match="tool_calls"):
            session.append("assistant", "", tool_calls=calls)
    assert session.turns() == before


def test_an_empty_session_can_be_asked(session):
    assert isinstance(session.ask("hello", max_new_tokens=3), str)
    assert isinstance(session, GistSession)
    assert torch.is_tensor(session.pieces("x")[0])
    assert GistSession.names(GistStore.open("memory://")) == []


def test_numbers_stay_beside_the_gists_within_the_slots(session):
    kept = another(session, verbatim="regex", slots=60)
    for number in range(14):
        kept.append("user", f"call {number * 7919 + 10000} or write to a{number}@b.org " + "and so on " * 3)
        assert kept.stats().n_slots <= 60
    memories = [held.memory for held in kept._state.held.values()]
    assert sum(memory.n_verbatim for memory in memories) > 20
    assert kept.stats().n_slots == kept._state.plan.n_slots


def test_threads_may_share_a_session(session):
    def talk(start):
        for number in range(start, start + 5):
            session.append("user", f"thread says {number}")
            session.stats()

    threads = [threading.Thread(target=talk, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [turn.id for turn in session.turns()] == list(range(15))
    other = another(session)
    for _, content in contents(session):
        other.append("user", content)
    assert same(session, other)


def test_markers_stand_for_the_turns_that_are_compressed(text_engine, monkeypatch):
    store = GistStore.open("memory://")
    session = text_engine.session(**SIZES, store=store, template="plain")
    session.sync([(f"k{n}", "user", f"text {n}: {n**5}") for n in range(5)])
    session.sync([(f"k{n}", "user", f"text {n}: {n**5}") for n in range(5)] + [("long", "user", "many words " * 7)])
    markers = session.markers()
    shown = [store.get(marker, text_engine) for marker in markers]
    held = [session._state.held[part].memory for part in sorted(session._state.held)]
    assert [memory.slots for memory in shown[: len(held)]] == [memory.slots for memory in held]
    texts = "".join(store.source(marker).text for marker in markers)
    recent = [turn.content for turn in session.turns() if turn.key in session.recent_keys()]
    assert texts + "".join(f"user: {text}\n" for text in recent) == "".join(
        f"user: {turn.content}\n" for turn in session.turns()
    )
    again = text_engine.session(**SIZES, store=store, template="plain")
    again.sync([(turn.key, "user", turn.content) for turn in session.turns()])
    assert again.markers() == markers
    assert again.stats().n_compressed_tokens == 0  # found in the store
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    with pytest.raises(InputError, match="template='plain'"):
        text_engine.session(**SIZES, template="chat").markers()
