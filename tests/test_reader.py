import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from patience import PATIENCE, until

from ultragist_rag import GistMemory, GistStore
from ultragist_rag.errors import (
    ContextOverflowError,
    GistNotFoundError,
    InputError,
    QueueFullError,
    RequestTimeoutError,
)
from ultragist_rag.reader import MemoryRef, Reader
from ultragist_rag.requests import _queues, in_thread, iterate, turn
from ultragist_rag.store import marker_scope

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)
DOCUMENTS = ["the quick brown fox " * 5, "jumps over the lazy dog " * 5]


@pytest.fixture(scope="module")
def engine(text_engine):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_engine.tokenizer, "chat_template", TEMPLATE)
        yield text_engine


@pytest.fixture(scope="module")
def store():
    return GistStore.open("memory://", namespace="ours")


@pytest.fixture(scope="module")
def markers(engine, store):
    return store.get_or_compress(engine, DOCUMENTS)


@pytest.fixture
def reader(engine, store, markers):
    return Reader(engine, store)


def n_queued(engine):
    queue = _queues.get(engine)
    return len(queue._requests) if queue else 0


def is_free(engine):
    """Whether the queue is empty and the lock can be taken by another thread."""
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(
            lambda: engine.attachment.lock.acquire(timeout=PATIENCE) and not engine.attachment.lock.release()
        )
        return taken.result() and n_queued(engine) == 0


def memories(pieces):
    return [piece for piece in pieces if isinstance(piece, GistMemory)]


def text_of(reader, pieces):
    """What stands in a prompt, memories as dots."""
    codec = reader.engine.tokenizer
    return "".join("·" if isinstance(piece, GistMemory) else codec.decode(piece) for piece in pieces)


class TestPrompts:
    def test_markers_become_memories_each_once(self, reader, markers):
        first, second = markers
        pieces = reader.pieces(f"a {first} b {second} c {first} d")
        assert [piece if isinstance(piece, str) else "·" for piece in pieces] == ["a ", "·", " b ", "·", " c  d"]
        assert torch.equal(memories(pieces)[0].keys[0], reader.store.get(first).keys[0])

    def test_without_a_store_a_marker_is_refused_or_stays_text(self, engine, markers):
        assert Reader(engine, None).pieces("plain") == ["plain"]
        with pytest.raises(GistNotFoundError, match="no store"):
            Reader(engine, None).pieces(f"a {markers[0]}")
        with pytest.raises(InputError, match="part of a marker"):
            Reader(engine, None).pieces(f"a {markers[0][:20]}")
        [text] = Reader(engine, None, unknown_markers="text").pieces(f"a {markers[0]}")
        assert markers[0] not in text
        with pytest.raises(GistNotFoundError):
            Reader(engine, None, unknown_markers="text").chat_pieces(
                [{"role": "user", "content": [MemoryRef(markers[0])]}]
            )

    def test_slots_of_a_prompt_are_limited(self, engine, store, markers):
        slots = [store.get(marker).slots for marker in markers]
        limited = Reader(engine, store, max_slots=sum(slots))
        assert len(memories(limited.pieces(" ".join(markers) + markers[0]))) == 2
        limited = Reader(engine, store, max_slots=sum(slots) - 1)
        with pytest.raises(ContextOverflowError):
            limited.pieces(" ".join(markers))
        given = [store.get(markers[0]), MemoryRef(markers[1])]
        with pytest.raises(ContextOverflowError, match=f"{sum(slots)} slots"):
            limited.chat_pieces([{"role": "user", "content": given}])

    def test_what_a_model_is_asked_about(self, reader):
        assert reader.token_ids("<|end|>") == reader.token_ids("<|") + reader.token_ids("end|>")
        assert reader.max_positions == 4096
        assert not reader.has_tools


class TestConversations:
    def test_memories_stand_once_wherever_they_are_mentioned(self, reader, markers):
        first, second = markers
        messages = [
            {"role": "system", "content": f"read {first}"},
            {"role": "user", "content": [f"again {first} and ", MemoryRef(second), MemoryRef(first), "?"]},
            {"role": "assistant", "content": f"as {second} says"},
            {"role": "user", "content": "go on"},
        ]
        pieces = reader.chat_pieces(messages)
        expected = "<user>read ·\n\nagain  and ·?\n<assistant>as  says\n<user>go on\n"
        assert text_of(reader, pieces) == expected
        assert messages[1]["content"][1] == MemoryRef(second)

    def test_a_reference_may_be_a_bare_id_or_a_memory_itself(self, reader, markers):
        memory = reader.store.get(markers[0])
        pieces = reader.chat_pieces([{"role": "user", "content": [memory, memory, MemoryRef(markers[1][10:-1])]}])
        assert memories(pieces)[0] is memory
        assert len(memories(pieces)) == 2

    @pytest.mark.parametrize("name", ["a" * 26, "nonsense", ""])
    @pytest.mark.parametrize("unknown", ["error", "text"])
    def test_unknown_references_are_always_refused(self, engine, store, name, unknown):
        reader = Reader(engine, store, unknown_markers=unknown)
        with pytest.raises(GistNotFoundError):
            reader.chat_pieces([{"role": "user", "content": [MemoryRef(name)]}])

    def test_in_a_scope_texts_may_use_its_markers_only_but_references_any(self, reader, engine, markers):
        with marker_scope():
            reader.store.find(DOCUMENTS[0], engine)
            content = [f"{markers[0]} {markers[1]}", MemoryRef(markers[1])]
            pieces = reader.chat_pieces([{"role": "user", "content": content}])
        assert len(memories(pieces)) == 2
        assert text_of(reader, pieces).startswith("<user>· ultragist")

    def test_an_attacker_in_another_namespace_gets_nothing(self, engine, markers):
        theirs = Reader(engine, GistStore.open("memory://", namespace="theirs"))
        for message in (
            {"role": "user", "content": markers[0]},
            {"role": "assistant", "content": [MemoryRef(markers[0])]},
        ):
            with pytest.raises(GistNotFoundError):
                theirs.chat_pieces([message])

    def test_special_tokens_in_messages_stay_text(self, reader):
        pieces = reader.chat_pieces([{"role": "user", "content": "x<|end|><|bos|>"}])
        ids = torch.cat(pieces).tolist()
        assert not {1, 2} & set(ids)
        assert text_of(reader, pieces) == "<user>x<|end|><|bos|>\n"

    def test_tools_need_a_template_that_shows_them(self, reader):
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        call = {"id": "1", "name": "f", "arguments": {}}
        for messages, tools in (
            ([{"role": "user", "content": "x"}], [tool]),
            ([{"role": "assistant", "content": "", "tool_calls": [call]}], None),
            ([{"role": "tool", "content": "x"}], None),
        ):
            with pytest.raises(InputError, match="no place for tools"):
                reader.chat_pieces(messages, tools=tools)

    def test_a_template_that_only_talks_about_tools_has_none(self, reader, monkeypatch):
        for template, has_tools in (
            ("{# no tools #}{{ messages[0].content }}", False),
            ("{{ messages[0].content }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}", True),
        ):
            monkeypatch.setattr(reader.engine.tokenizer, "chat_template", template)
            assert reader.has_tools is has_tools
        monkeypatch.setattr(reader.engine.tokenizer, "chat_template", None)
        assert not reader.has_tools


class TestAnswers:
    def test_answers_are_those_of_generate_with_counts(self, reader, markers):
        batch = [reader.pieces(f"{markers[0]} why?"), reader.pieces("how?"), [torch.tensor([1, 50, 51])]]
        answers = reader.answer(batch, max_new_tokens=6)
        assert [one.text for one in answers] == reader.engine.generate(batch, max_new_tokens=6)
        assert [one.n_slots for one in answers] == [reader.store.get(markers[0]).slots, 0, 0]
        assert [one.n_prompt_tokens for one in answers] == [1 + len(" why?"), 1 + len("how?"), 3]

    @pytest.mark.parametrize("settings", [{"max_new_tokens": 30}, {"max_new_tokens": 30, "do_sample": True, "seed": 3}])
    def test_a_stream_says_what_an_answer_says(self, reader, markers, settings):
        pieces = reader.pieces(f"{markers[0]} why?")
        [whole] = reader.answer([pieces], **settings)
        letters = [letter for letter in whole.text if letter != "\ufffd"]
        for stop in ([], letters[4:5], letters[-1:], ["not there"]):
            [answer] = reader.answer([pieces], stop=stop, **settings)
            stream = reader.stream(pieces, stop=stop, **settings)
            assert stream.finish is None
            assert "".join(stream) == answer.text
            told = (stream.finish, stream.n_tokens, stream.n_slots, stream.n_prompt_tokens)
            assert told == (answer.finish, len(answer.ids), answer.n_slots, answer.n_prompt_tokens)
        ends = {"eos_token_id": whole.ids[5].item()}
        [answer] = reader.answer([pieces], **settings, **ends)
        stream = reader.stream(pieces, **settings, **ends)
        assert ("".join(stream), stream.finish, stream.n_tokens) == (answer.text, "end", len(answer.ids))

    def test_bad_requests_are_refused_before_they_wait(self, reader, engine):
        with ThreadPoolExecutor(1) as pool, turn(engine):
            for call, error in (
                (lambda: reader.answer([["x" * 5000]]), ContextOverflowError),
                (lambda: reader.answer([["x"]], max_new_tokens=0), InputError),
                (lambda: reader.answer([["x"]], do_sample=True, num_return_sequences=2), InputError),
                (lambda: reader.stream([]), InputError),
                (lambda: reader.stream(["x"], num_beams=2), InputError),
                (lambda: reader.stream(["x"], colour="red"), InputError),
            ):
                with pytest.raises(error):
                    pool.submit(call).result(PATIENCE)

    def test_two_threads_get_what_each_gets_alone(self, reader, markers):
        prompts = [reader.pieces(f"{marker} {word}?") for marker in markers for word in ("why", "how")]
        alone = [reader.answer([prompt], max_new_tokens=8)[0].text for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            streams = pool.map(lambda prompt: "".join(reader.stream(prompt, max_new_tokens=8)), prompts)
            answers = pool.map(lambda prompt: reader.answer([prompt], max_new_tokens=8)[0].text, prompts)
            assert list(streams) == list(answers) == alone

    def test_an_engine_without_tokenizer_cannot_read(self):
        from ultragist_rag.testing import tiny_engine

        with pytest.raises(InputError, match="no tokenizer"):
            Reader(tiny_engine(), None)


class TestWaiting:
    def test_a_full_queue_refuses_answers_and_streams(self, engine):
        reader = Reader(engine, None, max_waiting=0)
        with ThreadPoolExecutor(1) as pool, turn(engine):
            with pytest.raises(QueueFullError):
                pool.submit(reader.answer, [["x"]]).result(PATIENCE)
            with pytest.raises(QueueFullError):
                pool.submit(next, reader.stream(["x"])).result(PATIENCE)
        assert is_free(engine)

    def test_cancelling_while_waiting_gives_an_empty_answer(self, reader, engine):
        asked = threading.Event()
        with ThreadPoolExecutor(2) as pool, turn(engine):
            answer = pool.submit(reader.answer, [["x"], ["yy"]], cancelled=asked.is_set)
            stream = reader.stream(["x"], cancelled=asked.is_set)
            text = pool.submit("".join, stream)
            until(lambda: n_queued(engine) == 3)
            asked.set()
            assert [(one.text, one.finish, one.n_prompt_tokens) for one in answer.result(PATIENCE)] == [
                ("", "cancelled", 2),
                ("", "cancelled", 3),
            ]
            assert (text.result(PATIENCE), stream.finish, stream.n_tokens) == ("", "cancelled", 0)
        assert is_free(engine)

    def test_cancelling_while_decoding_keeps_what_was_said(self, reader, engine):
        left = iter([False] * 4)
        [answer] = reader.answer([["x"]], cancelled=lambda: next(left, True), max_new_tokens=500)
        assert answer.finish == "cancelled"
        assert 0 < len(answer.ids) < 5
        assert is_free(engine)

    @pytest.mark.parametrize("where", ["waiting", "decoding"])
    def test_requests_that_take_too_long_are_ended(self, engine, where):
        reader = Reader(engine, None, timeout=0.05)
        if where == "waiting":
            with ThreadPoolExecutor(1) as pool, turn(engine):
                for call in (lambda: reader.answer([["x"]]), lambda: list(reader.stream(["x"]))):
                    with pytest.raises(RequestTimeoutError):
                        pool.submit(call).result(PATIENCE)
        else:
            long = {"max_new_tokens": 4000, "eos_token_id": 0, "suppress_tokens": [0]}
            with pytest.raises(RequestTimeoutError):
                reader.answer([["x"]], **long)
            with pytest.raises(RequestTimeoutError):
                list(reader.stream(["x"], **long))
        assert is_free(engine)

    @pytest.mark.parametrize("how", ["closed", "dropped", "block"])
    @pytest.mark.parametrize("when", ["waiting", "decoding", "unread"])
    def test_a_stream_that_is_over_frees_queue_and_lock(self, reader, engine, how, when):
        stream = reader.stream(["x"], max_new_tokens=4000, eos_token_id=0, suppress_tokens=[0])
        if when == "waiting":
            # A reader that waits cannot close; it is the stream of another thread that is closed here.
            with ThreadPoolExecutor(1) as pool, turn(engine):
                text = pool.submit("".join, stream)
                until(lambda: n_queued(engine) == 2)
                stream.close()
                assert text.result(PATIENCE) == ""
                assert n_queued(engine) == 1
        elif when == "decoding":
            next(stream)
        if how == "closed":
            stream.close()
            assert stream.finish == "cancelled"
            assert list(stream) == []
        elif how == "block":
            with stream as same:
                assert same is stream
        del stream
        gc.collect()
        until(lambda: n_queued(engine) == 0)
        assert is_free(engine)

    def test_a_slow_reader_keeps_nobody_waiting(self, reader, engine):
        stream = reader.stream(["x"], max_new_tokens=5)
        first = next(stream)
        assert reader.answer([["y"]], max_new_tokens=2)[0].text
        assert first + "".join(stream) == reader.answer([["x"]], max_new_tokens=5)[0].text


class TestCoroutines:
    async def test_answers_and_streams_off_the_event_loop(self, reader):
        [answer] = await in_thread(lambda cancelled: reader.answer([["x"]], cancelled=cancelled, max_new_tokens=5))
        streamed = [text async for text in iterate(lambda cancelled: reader.stream(["x"], max_new_tokens=5))]
        assert "".join(streamed) == answer.text

    async def test_an_async_stream_that_is_closed_frees_queue_and_lock(self, reader, engine):
        stream = iterate(
            lambda cancelled: reader.stream(
                ["x"], cancelled=cancelled, max_new_tokens=4000, eos_token_id=0, suppress_tokens=[0]
            )
        )
        assert await anext(stream)
        await stream.aclose()
        until(lambda: n_queued(engine) == 0)
        assert is_free(engine)
