"""Nothing is loaded when the object is made; a stream shows what the whole answer shows."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from scripted import streamed

from langchain_ultragist import ChatUltraGist
from ultragist_rag import GistNotFoundError, GistStore, InputError, RequestTimeoutError
from ultragist_rag.reader import Reader
from ultragist_rag.store import marker_scope

ROLES = ("system", "user", "assistant", "user")


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def chat(chat_engine: Any, store: GistStore) -> ChatUltraGist:
    return ChatUltraGist(engine=chat_engine, store=store, max_tokens=6)


@pytest.fixture
def tool_chat(hermes_engine: Any) -> ChatUltraGist:
    return ChatUltraGist(engine=hermes_engine, max_tokens=200)


@pytest.fixture
def markers(chat_engine: Any, store: GistStore) -> list[str]:
    return store.get_or_compress(chat_engine, ["Oslo lies by the sea.", "Bergen has much rain, all the year."])


def test_answers_with_the_chat_template(chat: ChatUltraGist, chat_engine: Any, store: GistStore) -> None:
    messages = [SystemMessage("Be short."), HumanMessage("Where?"), AIMessage("There."), HumanMessage("Where is it?")]
    prompt = [{"role": role, "content": message.content} for role, message in zip(ROLES, messages, strict=True)]
    pieces = Reader(chat_engine, store).chat_pieces(prompt)
    assert chat.invoke(messages).content == chat_engine.generate(pieces, max_new_tokens=6)


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("head", ["", "{{ bos_token }}"])
def test_strict_templates_get_every_text(chat_engine: Any, with_template: Any, head: str) -> None:
    chat = ChatUltraGist(engine=with_template(chat_engine, head + STRICT), max_tokens=2)
    messages = [SystemMessage("Be"), SystemMessage("short."), HumanMessage("Hey,"), HumanMessage("where?")]
    expected = "[user]Be\n\nshort.\n\nHey,\n\nwhere?"
    answer = chat.invoke(messages)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == len(expected) + bool(head)
    assert len(chat.invoke([*messages, AIMessage("There."), HumanMessage("Why?")]).text) > 0


def test_markers_and_blocks_are_read_as_their_memories(
    chat: ChatUltraGist, chat_engine: Any, store: GistStore, markers: list[str]
) -> None:
    content = [store.get(markers[1]), " and ", store.get(markers[0]), " where?"]
    pieces = Reader(chat_engine, store).chat_pieces([{"role": "user", "content": content}])
    expected = chat_engine.generate(pieces, max_new_tokens=6)
    assert chat.invoke(f"{markers[1]} and {markers[0]} where?").content == expected
    blocks = [{"type": "ultragist", "id": markers[1]}, " and ", {"type": "ultragist", "id": markers[0]}, " where?"]
    assert chat.invoke([HumanMessage(blocks)]).content == expected
    assert chat.invoke(f"{markers[0]} and {markers[1]} where?").content != expected


def test_unknown_and_foreign_references_are_refused_alike(chat_engine: Any, markers: list[str]) -> None:
    foreign = ChatUltraGist(engine=chat_engine, store=GistStore.open("memory://", namespace="other"))
    messages = set()
    for marker in (markers[0], "ultragist0" + "a" * 26 + "0"):
        for content in (f"{marker} where?", [{"type": "ultragist", "id": marker}, "where?"]):
            with pytest.raises(GistNotFoundError) as error:
                foreign.invoke([HumanMessage(content)])
            messages.add(str(error.value).replace(marker[10:-1], "ID"))
    assert len(messages) == 1


def test_markers_that_tools_bring_are_text_in_a_scope(tool_chat: ChatUltraGist, store: GistStore) -> None:
    chat = tool_chat.model_copy(update={"store": store})
    (marker,) = store.get_or_compress(chat.engine, ["Oslo lies by the sea."])

    def slots(content: Any) -> int:
        call = {"id": "call00001", "name": "add", "args": {}}
        history = [
            HumanMessage("add"),
            AIMessage("", tool_calls=[call]),
            ToolMessage(content, tool_call_id="call00001"),
        ]
        usage = chat.invoke(history, max_tokens=1).usage_metadata
        assert usage is not None
        return usage["input_token_details"]["cache_read"]

    block = [{"type": "ultragist", "id": marker}]
    assert slots(marker) == slots(block) == store.get(marker).slots
    with marker_scope():
        assert slots(marker) == slots(block) == 0


def test_usage_counts_tokens_and_slots(chat: ChatUltraGist, store: GistStore, markers: list[str]) -> None:
    usage = chat.invoke(f"{markers[0]} where?").usage_metadata
    plain = chat.invoke(" where?").usage_metadata
    assert usage is not None
    assert plain is not None
    slots = store.get(markers[0]).slots
    assert usage["input_token_details"]["cache_read"] == slots
    assert usage["input_tokens"] == plain["input_tokens"] + slots
    assert usage["output_tokens"] == 6
    assert chat.get_num_tokens_from_messages([HumanMessage(f"{markers[0]} where?")]) == usage["input_tokens"] - len(
        "[assistant]"
    )


def test_stream_gives_what_invoke_gives(chat: ChatUltraGist, markers: list[str]) -> None:
    question = f"{markers[0]} where?"
    answer = chat.invoke(question)
    chunks, whole = streamed(chat, question)
    assert len(chunks) > 2
    for name in ("content", "usage_metadata", "response_metadata"):
        assert getattr(whole, name) == getattr(answer, name)
    assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
    streaming = ChatUltraGist(engine=chat.engine, store=chat.store, max_tokens=6, streaming=True)
    assert streaming.invoke(question).content == answer.content


async def test_async_gives_what_sync_gives(chat: ChatUltraGist, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = chat.invoke("where?").content
    threads = set()
    pieces = Reader.chat_pieces

    def recorded(self: Reader, *args: Any, **kwargs: Any) -> Any:
        threads.add(threading.current_thread())
        return pieces(self, *args, **kwargs)

    monkeypatch.setattr(Reader, "chat_pieces", recorded)
    assert (await chat.ainvoke("where?")).content == expected
    assert "".join([str(chunk.content) async for chunk in chat.astream("where?")]) == expected
    assert [one.content for one in await chat.abatch(["where?", "where?"])] == [expected] * 2
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("way", ["invoke", "stream"])
async def test_cancelling_a_task_stops_decoding(chat: ChatUltraGist, way: str) -> None:
    started, cancelled = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    steps: list[bool] = []

    def slow(_: int, __: Any) -> list[int]:
        steps.append(cancelled.is_set())
        if len(steps) == 3:
            loop.call_soon_threadsafe(started.set)
            cancelled.wait()
        return [10]

    async def ask() -> None:
        if way == "invoke":
            await chat.ainvoke("where?", max_tokens=500, prefix_allowed_tokens_fn=slow)
        async for _ in chat.astream("where?", max_tokens=500, prefix_allowed_tokens_fn=slow):
            pass

    task = asyncio.create_task(ask())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    assert chat.engine is not None
    assert (await chat.ainvoke("where?")).content  # waits until the first one has left
    assert sum(steps) <= 2


def test_settings_of_the_call_go_before_those_of_the_object(chat: ChatUltraGist) -> None:
    whole = str(chat.invoke("where?").content)
    stop = whole[2]
    assert chat.invoke("where?", stop=[stop]).content == whole[: whole.index(stop)]
    assert chat.invoke("where?", stop=[stop]).response_metadata["finish_reason"] == "stop"
    draws = {str(chat.invoke("where?", temperature=2.0, seed=seed).content) for seed in (1, 1, 2, 3)}
    assert len(draws) == 3
    with pytest.raises(InputError, match="unknown settings tempreature"):
        chat.invoke("where?", tempreature=1.0)


def test_batch_in_threads_equals_singles(chat: ChatUltraGist, markers: list[str]) -> None:
    questions = [f"{marker} {word}?" for marker in markers for word in ("where", "why")]
    assert [one.content for one in chat.batch(questions)] == [chat.invoke(question).content for question in questions]


async def test_a_batch_does_not_fill_the_queue(chat: ChatUltraGist) -> None:
    small = chat.model_copy(update={"max_waiting": 1})
    expected = [chat.invoke("where?").content] * 6
    assert [one.content for one in small.batch(["where?"] * 6)] == expected
    assert [one.content for one in await small.abatch(["where?"] * 6)] == expected
    assert [one.content for one in await small.abatch(["where?"] * 6, {"max_concurrency": 2})] == expected
    assert small.batch([]) == []


def test_requests_end_in_time(chat: ChatUltraGist) -> None:
    late = chat.model_copy(update={"timeout": 1e-9})
    with pytest.raises(RequestTimeoutError):
        late.invoke("where?")
    with pytest.raises(RequestTimeoutError):
        list(late.stream("where?"))


def test_nothing_is_loaded_until_asked() -> None:
    chat = ChatUltraGist(model="/nowhere", max_tokens=3)
    assert (chat.model_name, chat.max_tokens, chat.profile) == ("/nowhere", 3, None)
    with pytest.raises(Exception, match="nowhere"):
        chat.invoke("where?")


def test_profile_tells_how_much_can_be_read(chat: ChatUltraGist, tool_chat: ChatUltraGist, model_folders: Any) -> None:
    assert chat.profile is not None
    assert tool_chat.profile is not None
    assert chat.profile["max_input_tokens"] == 4096 - 6
    assert (chat.profile["tool_calling"], tool_chat.profile["tool_calling"]) == (False, True)
    unloaded = ChatUltraGist(model=str(model_folders[0]), max_tokens=96)
    assert unloaded.profile is not None
    assert unloaded.profile["max_input_tokens"] == 4000


def test_traces_name_model_and_versions(chat: ChatUltraGist) -> None:
    named = ChatUltraGist(model="some-model", temperature=0.5, stop=["x"])
    params = named._get_ls_params(temperature=0.1)
    assert params["ls_provider"] == "ultragist"
    assert (params["ls_model_name"], params["ls_temperature"], params["ls_stop"]) == ("some-model", 0.1, ["x"])
    assert named._get_ls_params(model="other")["ls_model_name"] == "other"
    assert {"ultragist-rag", "langchain-core"} <= set((named.metadata or {})["lc_versions"])
    assert chat.invoke("where?").response_metadata["model_name"] == chat.asdict()["model_name"]


def test_what_is_serialised_has_neither_store_nor_engine(chat: ChatUltraGist) -> None:
    chat.invoke("where?")
    for text in (dumps(chat), repr(chat), str(chat.asdict())):
        assert "GistStore" not in text
        assert "UltraGist object" not in text
    assert not {"store", "engine"} & set(chat.model_dump())


def test_store_is_chosen_by_the_call(chat: ChatUltraGist, markers: list[str]) -> None:
    by_tenant = ChatUltraGist(engine=chat.engine, max_tokens=6).configurable_fields(
        store=ConfigurableField(id="gist_store")
    )
    prompt = ChatPromptTemplate.from_messages([("human", "{context} {question}")])
    question = {"context": markers[0], "question": "where?"}
    with pytest.raises(GistNotFoundError):
        (prompt | by_tenant).invoke(question)
    answer = (prompt | by_tenant).invoke(question, config={"configurable": {"gist_store": chat.store}})
    assert answer.content == chat.invoke(f"{markers[0]} where?").content
