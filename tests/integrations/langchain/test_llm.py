"""Nothing is loaded when the object is made; a marker that the store does not know is never passed on as text."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField

from langchain_ultragist import UltraGistCompressor, UltraGistLLM
from ultragist_rag import GistNotFoundError, GistStore, UltraGist
from ultragist_rag.memory import generate

QUESTION = "\n\nQuestion: where?\nAnswer:"


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def llm(text_engine: Any, store: GistStore) -> UltraGistLLM:
    return UltraGistLLM(engine=text_engine, store=store, max_new_tokens=6)


@pytest.fixture
def markers(text_engine: Any, store: GistStore) -> list[str]:
    documents = [Document("Oslo lies by the sea."), Document("Bergen has much rain, all the year.")]
    done = UltraGistCompressor(engine=text_engine, store=store).compress_documents(documents, "")
    return [document.page_content for document in done]


def test_markers_are_read_as_their_memories(
    llm: UltraGistLLM, text_engine: Any, store: GistStore, markers: list[str]
) -> None:
    prompt = f"{markers[1]}\n\n{markers[0]}{QUESTION}"
    pieces = [store.get(markers[1]), "\n\n", store.get(markers[0]), QUESTION]
    assert llm.invoke(prompt) == text_engine.generate(pieces, max_new_tokens=6)
    assert llm.invoke(prompt) != llm.invoke(f"{markers[0]}\n\n{markers[1]}{QUESTION}")


def test_batch_is_one_call_and_equals_singles(
    llm: UltraGistLLM, text_engine: Any, markers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"{markers[0]}{QUESTION}", "no memory" + QUESTION, f"{markers[0]}\n\n{markers[1]}{QUESTION}"]
    singles = [llm.invoke(prompt) for prompt in prompts]
    calls = []
    decode = generate.decode
    monkeypatch.setattr(
        generate, "decode", lambda engine, rows, *more: (calls.append(rows), decode(engine, rows, *more))[1]
    )
    assert llm.batch(prompts) == singles
    assert [len(call) for call in calls] == [3]


def test_stream_joins_to_the_answer_and_tells_callbacks(llm: UltraGistLLM, markers: list[str]) -> None:
    prompt = markers[0] + QUESTION
    assert "".join(llm.stream(prompt)) == llm.invoke(prompt)

    told: list[str] = []

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **_: Any) -> None:
            told.append(token)

    pieces = list(llm.stream(prompt, config={"callbacks": [Listener()]}))
    assert told == pieces


async def test_async_gives_what_sync_gives(llm: UltraGistLLM, markers: list[str]) -> None:
    prompts = [markers[0] + QUESTION, markers[1] + QUESTION]
    expected = llm.batch(prompts)
    assert await llm.abatch(prompts) == expected
    assert await llm.ainvoke(prompts[0]) == expected[0]
    assert "".join([piece async for piece in llm.astream(prompts[0])]) == expected[0]


async def test_cancelling_a_task_stops_decoding(llm: UltraGistLLM) -> None:
    started, cancelled = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    steps: list[bool] = []

    def slow(_: int, __: Any) -> list[int]:
        steps.append(cancelled.is_set())
        if len(steps) == 3:
            loop.call_soon_threadsafe(started.set)
            cancelled.wait()
        return [10]

    task = asyncio.create_task(llm.ainvoke("where?", max_tokens=500, prefix_allowed_tokens_fn=slow))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()
    assert await llm.ainvoke("where?")  # waits until the first one has left
    assert sum(steps) <= 2


def test_stop_text_is_cut_off(llm: UltraGistLLM, markers: list[str]) -> None:
    prompt = markers[0] + QUESTION
    whole = llm.invoke(prompt)
    stop = whole[2]
    expected = whole[: whole.index(stop)]
    assert llm.invoke(prompt, stop=[stop]) == expected
    assert "".join(llm.stream(prompt, stop=[stop])) == expected
    assert llm.model_copy(update={"stop": [stop]}).invoke(prompt) == expected


def test_unknown_and_foreign_markers_are_refused_alike(llm: UltraGistLLM, text_engine: Any, markers: list[str]) -> None:
    foreign = UltraGistLLM(engine=text_engine, store=GistStore.open("memory://", namespace="other"))
    with pytest.raises(GistNotFoundError):
        foreign.invoke(markers[0] + QUESTION)
    with pytest.raises(GistNotFoundError):
        llm.invoke("ultragist0" + "a" * 26 + "0" + QUESTION)


def test_repeated_marker_is_read_once(llm: UltraGistLLM, markers: list[str]) -> None:
    assert llm.invoke(f"{markers[0]} {markers[0]} end") == llm.invoke(f"{markers[0]}  end")


def test_tokens_are_counted_with_the_models_own_tokenizer(
    llm: UltraGistLLM, store: GistStore, markers: list[str]
) -> None:
    assert llm.get_num_tokens("dix €") == 4 + 3
    assert len(llm.get_token_ids("<|end|>")) == len("<|end|>")
    result = llm.generate([markers[0] + QUESTION])
    assert result.llm_output is not None
    usage = result.llm_output["token_usage"]
    slots = store.get(markers[0]).slots
    assert usage == {
        "prompt_tokens": 1 + len(QUESTION) + slots,  # 1: the token at the head
        "memory_slots": slots,
        "completion_tokens": 6,
        "total_tokens": 1 + len(QUESTION) + slots + 6,
    }
    (last,) = list(llm._stream(markers[0] + QUESTION))[-1:]
    assert (last.generation_info or {})["token_usage"] == usage


def test_nothing_is_loaded_or_shown_until_asked(store: GistStore) -> None:
    llm = UltraGistLLM(model="/nowhere", store=store, max_tokens=3)
    assert llm.model_name == "/nowhere"
    assert llm.max_tokens == 3
    assert "GistStore" not in repr(llm)
    assert "/nowhere" in str(llm)


def test_components_of_one_model_share_an_engine(model_folders: Any, store: GistStore) -> None:
    llm = UltraGistLLM(model=str(model_folders[0]), store=store, max_tokens=2)
    compressor = UltraGistCompressor(model=str(model_folders[0]), store=store)
    (document,) = compressor.compress_documents([Document("Oslo lies by the sea.")], "")
    assert isinstance(llm.invoke(document.page_content + QUESTION), str)
    assert llm._get_engine() is compressor._get_engine()


def test_chain_of_prompt_and_parser(llm: UltraGistLLM, markers: list[str]) -> None:
    chain = PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:") | llm | StrOutputParser()
    expected = llm.invoke(markers[0] + "\n\nQuestion: {x} where?\nAnswer:")
    assert chain.invoke({"context": markers[0], "question": "{x} where?"}) == expected


def test_a_model_stays_loaded_though_each_call_has_another_store(
    model_folders: Any, markers: list[str], store: GistStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = UltraGist.from_pretrained
    monkeypatch.setattr(UltraGist, "from_pretrained", lambda *args, **options: (loads.append(args), load(*args))[1])
    llm = UltraGistLLM(model=str(model_folders[0]), max_tokens=6)
    by_tenant = llm.configurable_fields(store=ConfigurableField(id="gist_store"))
    prompt = markers[0] + QUESTION
    answers = {by_tenant.with_config(configurable={"gist_store": store}).invoke(prompt) for _ in range(2)}
    assert len(answers) == len(loads) == 1
    with pytest.raises(GistNotFoundError):
        by_tenant.with_config(configurable={"gist_store": GistStore.open("memory://")}).invoke(prompt)
    assert answers == {llm.model_copy(update={"store": store}).invoke(prompt)}
    assert len(loads) == 1


def test_traces_name_the_model(llm: UltraGistLLM) -> None:
    params = UltraGistLLM(model="some-model", temperature=0.5)._get_ls_params(stop=["x"], max_tokens=3)
    assert (params["ls_provider"], params["ls_model_type"], params["ls_model_name"]) == (
        "ultragist",
        "llm",
        "some-model",
    )
    assert (params["ls_temperature"], params["ls_max_tokens"], params["ls_stop"]) == (0.5, 3, ["x"])
    result = llm.generate([QUESTION])
    assert (result.llm_output or {})["model_name"] == llm.asdict()["model_name"]
    assert (result.generations[0][0].generation_info or {})["finish_reason"] == "length"
