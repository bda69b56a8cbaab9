"""A saved session is the session, without work for the model; what was forgotten leaves the store."""

import threading
import warnings

import pytest
from talking import CHATML, SIZES, fill, same
from templates import QWEN

from ultragist_rag import CorruptGistError, InputError, StoreError, UltraGist
from ultragist_rag.session import GistSession, pages
from ultragist_rag.store import GistStore, upkeep

pytestmark = pytest.mark.filterwarnings("ignore:the session has more turns")


@pytest.fixture(params=["chat", "plain"])
def talking(request, text_engine, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", CHATML)
    monkeypatch.setattr(pages, "_N_TURNS", 8)

    def make(**settings):
        return text_engine.session(**SIZES | settings, template=request.param)

    return make


@pytest.fixture
def other_engine(model_folders):
    return UltraGist.from_pretrained(model_folders[1])


@pytest.fixture
def store(tmp_path, own_secret):
    return GistStore.open(tmp_path)


def everything(store):
    """All that a store holds, as text."""
    records = "".join(str(store.records.get(kind, name)) for kind, name in store.records)
    return records + "".join(record.text for marker in store if (record := store.find_source(marker)))


def test_what_is_loaded_answers_as_what_was_saved_and_costs_the_model_nothing(talking, store, text_engine):
    session = talking(store=store, name="long")
    fill(session, 30)
    session.pin(27)
    session.save()
    loaded = GistSession.load(text_engine, store, "long")
    assert loaded.turns() == session.turns()
    assert same(loaded, session)
    assert loaded.stats().n_compressed_tokens == 0
    for one in (session, loaded):
        one.forget(21)
        assert fill(one, 3, 7) == [30, 31, 32]
    assert same(loaded, session)
    assert GistSession.names(store) == ["long"]


def test_of_an_archive_that_was_there_nothing_is_said_again(talking, store, text_engine):
    session = talking(store=store, name="long")
    fill(session, 25)
    session.save()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fill(GistSession.load(text_engine, store, "long"), 1)
        fill(session.fork(), 1)
    assert caught == []


def test_another_model_or_template_makes_all_memories_again(talking, store, text_engine, other_engine, monkeypatch):
    session = talking(store=store, name="moving", slots=60)
    fill(session, 12)
    session.pin(2)
    session.save()
    kind = session._maker.rendering.kind
    other_engine.tokenizer.chat_template = CHATML
    fresh = other_engine.session(**SIZES | {"slots": 60}, template=kind)
    fill(fresh, 12)
    fresh.pin(2)
    assert same(GistSession.load(other_engine, store, "moving"), fresh)
    if kind == "chat":
        monkeypatch.setattr(
            text_engine.tokenizer, "chat_template", CHATML.replace("<|end|>", " and that was it<|end|>")
        )
        loaded = GistSession.load(text_engine, store, "moving")
        fresh = text_engine.session(**SIZES | {"slots": 60})
        fill(fresh, 12)
        fresh.pin(2)
        assert same(loaded, fresh)
        assert loaded.stats().n_tokens > session.stats().n_tokens


def test_memories_that_had_to_make_room_are_made_again(talking, store, text_engine):
    session = talking(store=store)
    fill(session, 15)
    session.save("short")
    for marker in list(store):
        store.delete(marker)
    loaded = GistSession.load(text_engine, store, "short")
    assert loaded.stats().n_compressed_tokens > 0
    assert same(loaded, session)


def test_a_session_moves_to_the_store_it_is_saved_in(talking, store, text_engine):
    session = talking()
    fill(session, 20)
    session.save("moved", store)
    assert session.store is store
    fill(session, 10, 20)
    session.save()
    assert same(GistSession.load(text_engine, store, "moved"), session)


def test_what_is_forgotten_leaves_the_store_unless_a_fork_needs_it(talking, store):
    session = talking(store=store, name="main")
    fill(session, 5)
    secret = session.append("user", "the password is swordfish")
    fill(session, 12)
    session.save()
    fork = session.fork("fork")
    fork.save()
    assert "swordfish" in everything(store)
    session.forget(secret)
    session.save()
    assert "swordfish" in everything(store)
    fork.forget(secret)
    fork.save()
    assert "swordfish" not in everything(store)


def test_what_was_shown_by_a_marker_and_forgotten_leaves_the_store_too(text_engine, store):
    session = text_engine.session(**SIZES, template="plain", store=store, name="shown")
    secret = session.append("user", "the password is swordfish")
    for number in range(9):
        fill(session, 1, number)
        session.markers()
    assert "swordfish" in everything(store)
    session.forget(secret)
    session.save()
    assert "swordfish" not in everything(store)


def test_damaged_memories_are_made_again(talking, tmp_path, own_secret, text_engine):
    session = talking(store=GistStore.open(tmp_path), name="main")
    fill(session, 12)
    session.save()
    damaged = next(tmp_path.rglob("*.gist"))
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    loaded = GistSession.load(text_engine, GistStore.open(tmp_path), "main")
    assert loaded.stats().n_compressed_tokens > 0
    assert same(loaded, session)


def test_forks_of_other_processes_are_asked_too(talking, store, text_engine):
    session = talking(store=store, name="main")
    fill(session, 12)
    session.save()
    GistSession.load(text_engine, store, "main").fork("fork").save()
    session.rewind(3)
    session.save()
    assert len(GistSession.load(text_engine, store, "fork").turns()) == 12
    assert GistSession.delete(store, "main")
    assert len(GistSession.load(text_engine, store, "fork").turns()) == 12
    assert GistSession.delete(store, "fork")
    assert not GistSession.delete(store, "fork")
    assert list(store.records) == []
    assert len(store) == 0


def test_saving_again_leaves_nothing_behind(talking, store):
    session = talking(store=store, name="main")
    for number in range(20):
        fill(session, 1, number)
        session.save()
    manifest = store.records.get("session", "main")
    assert set(store.records.names("page")) == set(manifest["pages"])
    assert set(store) == {marker for *_, marker in manifest["memories"]}


def test_sessions_do_not_overwrite_each_other(talking, store, text_engine):
    session = talking(store=store, name="main")
    fill(session, 2)
    session.save()
    with pytest.raises(InputError, match="another session"):
        talking(store=store, name="main")
    with pytest.raises(InputError, match="another session"):
        talking(store=store).save("main")
    other = GistSession.load(text_engine, store, "main")
    other.append("user", "first")
    other.save()
    session.append("user", "second")
    with pytest.raises(StoreError, match="somebody else"):
        session.save()
    session.save("mine")
    assert [turn.content for turn in GistSession.load(text_engine, store, "main").turns()][-1] == "first"
    with pytest.raises(InputError, match="no name"):
        talking().save()
    with pytest.raises(InputError, match="no session 'nobody'"):
        GistSession.load(text_engine, store, "nobody")


def test_a_save_that_fails_leaves_what_was_saved_before(talking, store, text_engine, monkeypatch):
    session = talking(store=store, name="main")
    fill(session, 10)
    session.save()
    before = session.turns()
    fill(session, 10, 10)

    def full(*_):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(store.records), "put_all", full)
        with pytest.raises(StoreError, match="full"):
            session.save()
    assert [turn.content for turn in GistSession.load(text_engine, store, "main").turns()] == [
        turn.content for turn in before
    ]
    session.save()
    assert same(GistSession.load(text_engine, store, "main"), session)


def test_a_page_that_is_gone_is_reported(talking, store, text_engine):
    session = talking(store=store, name="main")
    fill(session, 12)
    session.save()
    store.records.delete("page", store.records.names("page"))
    with pytest.raises(CorruptGistError, match="page"):
        GistSession.load(text_engine, store, "main")


def test_tool_turns_and_names_come_back_as_they_were(talking, store, text_engine, monkeypatch):
    monkeypatch.setattr(text_engine.tokenizer, "chat_template", QWEN)
    session = talking(store=store, name="tools", recent=0, slots=400)
    session.append("user", "what is the weather?", name="Ada")
    call = {"name": "weather", "arguments": {"town": "Lomé"}, "id": "call_1"}
    session.append("assistant", None, tool_calls=[call])
    session.append("tool", "rain", tool_call_id="call_1")
    session.save()
    loaded = GistSession.load(text_engine, store, "tools")
    said = [turn.said for turn in loaded.turns()]
    assert said[0]["name"] == "Ada"
    assert said[1]["tool_calls"] == [call]
    assert said[2]["tool_call_id"] == "call_1"
    assert loaded.turns() == session.turns()
    assert same(loaded, session)


def test_a_fork_that_is_saved_before_its_session_has_a_name_keeps_its_pages(talking, store, text_engine):
    session = talking(store=store)
    fill(session, 20)
    fork = session.fork("fork")
    fork.save()
    session.save("main")
    del fork
    session.rewind(1)
    session.save()
    assert len(GistSession.load(text_engine, store, "fork").turns()) == 20


def test_a_session_whose_pages_are_gone_is_not_said_to_be_saved(talking, store, text_engine, monkeypatch):
    session = talking(store=store, name="main")
    fill(session, 20)
    session.save()
    other = GistSession.load(text_engine, store, "main")
    other.rewind(1)
    other.save()
    with pytest.raises(StoreError, match="has left the store"):
        session.save("mine")
    fill(other, 20, 20)
    monkeypatch.setattr(upkeep, "PAGE_SECONDS", -1)
    upkeep.prune(store)
    with pytest.raises(StoreError, match="has left the store"):
        other.save()
    assert len(GistSession.load(text_engine, store, "main").turns()) == 1
    GistSession.delete(store, "main")
    assert GistSession.names(store) == []


def test_saving_does_not_delete_what_a_fork_is_about_to_show(talking, store, text_engine, monkeypatch):
    session = talking(store=store, name="main")
    fill(session, 20)
    session.save()
    fork = session.fork("fork")
    fill(fork, 3, 20)
    has_written, may_go_on, settle = threading.Event(), threading.Event(), fork._maker.settle

    def slow(state):
        has_written.set()
        may_go_on.wait(2)
        return settle(state)

    monkeypatch.setattr(fork._maker, "settle", slow)
    adding = threading.Thread(target=fill, args=(fork, 1, 23))
    adding.start()
    has_written.wait()
    saving = threading.Thread(target=lambda: (session.forget(19), session.save()))
    saving.start()
    saving.join(0.3)
    may_go_on.set()
    adding.join()
    saving.join()
    fork.save()
    assert len(GistSession.load(text_engine, store, "fork").turns()) == 24


def test_a_session_goes_on_after_its_store_has_another_secret(talking, store, text_engine):
    session = talking(store=store, name="main")
    fill(session, 20)
    session.save()
    store.rotate("another secret of the tests, as long")
    fill(session, 10, 20)
    session.save()
    loaded = GistSession.load(text_engine, store, "main")
    assert loaded.turns() == session.turns()
    assert same(loaded, session)


def test_what_was_saved_quantised_answers_as_it_did(talking, tmp_path, own_secret, text_engine):
    store = GistStore.open(tmp_path, quantise="int4")
    session = talking(store=store, name="main")
    moved = talking()
    for one in (session, moved):
        fill(one, 14)
    assert not same(session, moved)
    moved.save("moved", store)
    session.save()
    for one in (session, moved):
        assert same(GistSession.load(text_engine, store, one.name), one)


def test_another_model_chooses_its_own_verbatim_tokens(talking, store, other_engine):
    session = talking(store=store, name="main", slots=120, verbatim="surprisal")
    fill(session, 20)
    session.save()
    other_engine.tokenizer.chat_template = CHATML
    loaded = GistSession.load(other_engine, store, "main")
    assert loaded.stats().n_slots == loaded._state.plan.n_slots
