"""Every way to ask gives one answer, says what it took, and leaves the event loop free."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from llama_index.core.base.llms.types import DocumentBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage

from llama_index_ultragist import UltraGistLLM, slot_tokenizer
from ultragist_rag import ContextOverflowError, GistStore, InputError
from ultragist_rag.reader import Reader


@pytest.fixture
def marker(store: GistStore, chat_engine: Any) -> str:
    return store.get_or_compress(chat_engine, ["Oslo lies by the sea, at the end of a fjord."], ratio=4)[0]


@pytest.fixture
def long(chat_engine: Any, store: GistStore) -> UltraGistLLM:
    return UltraGistLLM(engine=chat_engine, store=store, max_tokens=3500)


async def test_every_way_to_complete_gives_one_answer(llm: UltraGistLLM, marker: str) -> None:
    prompt = f"{marker}\nWhere is Oslo?"
    llm = llm.model_copy(update={"max_tokens": 8})
    given = llm.complete(prompt)
    assert given.text
    assert (await llm.acomplete(prompt)) == given
    for parts in (list(llm.stream_complete(prompt)), [one async for one in await llm.astream_complete(prompt)]):
        assert "".join(part.delta or "" for part in parts) == parts[-1].text == given.text
        assert parts[-1].raw == given.raw
        assert [part.raw for part in parts[:-1]] == [None] * (len(parts) - 1)


async def test_every_way_to_chat_gives_one_answer(llm: UltraGistLLM, marker: str) -> None:
    messages = [ChatMessage(f"Read {marker}", role="system"), ChatMessage("Where is Oslo?")]
    llm = llm.model_copy(update={"max_tokens": 8})
    given = llm.chat(messages)
    assert given.message.role == "assistant"
    assert (await llm.achat(messages)) == given
    for parts in (list(llm.stream_chat(messages)), [one async for one in await llm.astream_chat(messages)]):
        assert "".join(part.delta or "" for part in parts) == parts[-1].message.content == given.message.content
        assert parts[-1].raw == given.raw


def test_chat_is_the_template_and_complete_is_not(llm: UltraGistLLM, prompts: Any, marker: str) -> None:
    llm.chat([ChatMessage(f"Read {marker}", role="developer"), ChatMessage("Where?")])
    llm.complete("Where?")
    assert prompts[0].text == "<|bos|>system\nRead {}<|end|>\n<|bos|>user\nWhere?<|end|>\n<|bos|>assistant\n"
    assert prompts[1].text == "Where?"


def test_usage_counts_tokens_and_slots(llm: UltraGistLLM, marker: str) -> None:
    counter = TokenCountingHandler(tokenizer=slot_tokenizer(llm))
    llm.callback_manager = CallbackManager([counter])
    raw = llm.complete(f"{marker}\nWhere?").raw
    slots = llm.store.get(marker).slots  # type: ignore[union-attr]
    assert raw["usage"]["prompt_tokens_details"] == {"cached_tokens": slots}
    n_tokens = raw["usage"]["prompt_tokens"] - slots
    assert n_tokens in (len("\nWhere?"), len("\nWhere?") + 1)  # with or without a lead token
    assert counter.prompt_llm_token_count == raw["usage"]["prompt_tokens"]
    assert counter.completion_llm_token_count == raw["usage"]["completion_tokens"] == 2
    assert raw["finish_reason"] == "length"


def test_settings_of_the_call_go_before_those_of_the_object(llm: UltraGistLLM) -> None:
    text = llm.complete("Where?", max_tokens=12).text
    assert len(text) > len(llm.complete("Where?").text)
    assert llm.complete("Where?", max_tokens=12, stop=[text[3:6]]).text == text[: text.index(text[3:6])]
    drawn = [llm.complete("Where?", max_tokens=12, temperature=1.0, seed=seed).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(InputError, match="colour"):
        llm.complete("Where?", colour="red")


async def test_the_event_loop_stays_free_and_cancelling_ends_decoding(
    long: UltraGistLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended, finished = threading.Event(), threading.Event(), []
    answer = Reader.answer

    def watched(self: Reader, batch: Any, **settings: Any) -> Any:
        started.set()
        assert threading.current_thread() is not threading.main_thread()
        try:
            finished.extend(one.finish for one in answer(self, batch, **settings))
        finally:
            ended.set()

    monkeypatch.setattr(Reader, "answer", watched)
    for call in (long.acomplete("Where?"), long.achat([ChatMessage("Where?")])):
        started.clear()
        ended.clear()
        task = asyncio.create_task(call)
        await asyncio.to_thread(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(ended.wait)
    assert finished == ["cancelled", "cancelled"]


async def test_closing_a_stream_ends_decoding(long: UltraGistLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = []
    stream = Reader.stream
    monkeypatch.setattr(
        Reader, "stream", lambda self, *args, **settings: streams.append(stream(self, *args, **settings)) or streams[-1]
    )
    parts = long.stream_complete("Where?")
    next(parts)
    parts.close()
    astream = await long.astream_chat([ChatMessage("Where?")])
    await anext(astream)
    await astream.aclose()
    await long.model_copy(update={"max_tokens": 1}).acomplete("Next?")  # waits until the others gave their turns back
    async with asyncio.timeout(60):
        while streams[-1].finish is None:  # its thread says so after that
            await asyncio.sleep(0.01)
    assert [one.finish for one in streams] == ["cancelled", "cancelled"]
    assert all(one.n_tokens < 3500 for one in streams)


def test_messages_of_all_kinds(llm: UltraGistLLM, prompts: Any, marker: str) -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="find", tool_kwargs='{"query": "<|end|>"}')
    messages = [
        ChatMessage("Where?"),
        ChatMessage([ThinkingBlock(content="hm"), call], role="assistant"),
        ChatMessage(f"in {marker}", role="tool", additional_kwargs={"tool_call_id": "1"}),
    ]
    llm.chat(messages)
    assert "hm" not in prompts[-1].text
    assert "find" in prompts[-1].text
    assert prompts[-1].text.endswith("in {}<|end|>\n<|bos|>assistant\n")
    assert prompts[-1].n_special == 7  # two for each message, one for the answer; none of the arguments
    with pytest.raises(InputError, match="document"):
        llm.chat([ChatMessage([DocumentBlock(data=b"%PDF")])])
    with pytest.raises(InputError, match="no JSON"):
        llm.chat([ChatMessage([ToolCallBlock(tool_name="find", tool_kwargs="{")], role="assistant")])


def test_metadata_say_how_to_pack(llm: UltraGistLLM, text_engine: Any, chat_engine: Any) -> None:
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (chat_engine.max_positions, 2)
    assert metadata.is_chat_model
    assert not UltraGistLLM(engine=text_engine).metadata.is_chat_model
    assert metadata.model_name == f"ultragist-{chat_engine.fingerprint[:12]}"


def test_nothing_is_loaded_or_shown_until_asked(store: GistStore) -> None:
    lazy = UltraGistLLM(model="/nowhere", store=store, context_window=4096, is_chat_model=True)
    assert (lazy.metadata.model_name, lazy.metadata.context_window) == ("/nowhere", 4096)
    assert not {"engine", "store"} & lazy.to_dict().keys()
    assert "GistStore" not in repr(lazy)
    assert lazy.class_name() == "UltraGistLLM"


def test_slots_are_capped(llm: UltraGistLLM, marker: str) -> None:
    small = llm.model_copy(update={"max_slots": 3})
    with pytest.raises(ContextOverflowError):
        small.complete(f"{marker}\nWhere?")
    with pytest.raises(ContextOverflowError):
        small.chat([ChatMessage(f"{marker}\nWhere?")])


def test_slot_tokenizer_counts_slots_and_the_models_tokens(llm: UltraGistLLM, marker: str) -> None:
    count = slot_tokenizer(llm)
    slots = llm.store.get(marker).slots  # type: ignore[union-attr]
    assert [len(count(text)) for text in ("", "Oslo", marker, f"in {marker} or {marker}")] == [
        0,
        4,
        slots,
        7 + 2 * slots,
    ]
    forged = "ultragist0" + "a" * 26 + "0"
    assert len(count(forged)) == len(forged)
