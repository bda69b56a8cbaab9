"""Nothing is loaded when the object is made; a marker that the store does not know is never passed on as text."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_ultragist import UltraGistCompressor, UltraGistLLM
from ultragist_rag import GistMemory, GistNotFoundError, GistStore, UltraGist

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
    generate = UltraGist.generate
    monkeypatch.setattr(
        UltraGist, "generate", lambda this, pieces, **more: (calls.append(pieces), generate(this, pieces, **more))[1]
    )
    assert llm.batch(prompts) == singles
    assert [len(call) for call in calls] == [3]


def test_stream_joins_to_the_answer_and_tells_callbacks(llm: UltraGistLLM, markers: list[str]) -> None:
    prompt = markers[0] + QUESTION
    assert "".join(llm.stream(prompt)) == llm.invoke(prompt)

    async def collect() -> str:
        return "".join([piece async for piece in llm.astream(prompt)])

    assert asyncio.run(collect()) == llm.invoke(prompt)


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
    pieces = llm.pieces(f"{markers[0]} {markers[0]} {markers[1]} end")
    assert [isinstance(piece, GistMemory) for piece in pieces] == [True, False, False, True, False]


def test_tokens_are_counted_with_the_models_own_tokenizer(
    llm: UltraGistLLM, store: GistStore, markers: list[str]
) -> None:
    assert llm.get_num_tokens("dix €") == 4 + 3
    assert len(llm.get_token_ids("<|end|>")) == len("<|end|>")
    result = llm.generate([markers[0] + QUESTION])
    assert result.llm_output is not None
    usage = result.llm_output["token_usage"]
    assert usage["prompt_tokens"] == len(QUESTION)
    assert usage["memory_slots"] == store.get(markers[0]).slots
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["memory_slots"] + usage["completion_tokens"]


def test_answers_are_cached_by_content(llm: UltraGistLLM, markers: list[str]) -> None:
    cached = llm.model_copy(update={"cache": InMemoryCache()})
    first = cached.invoke(markers[0] + QUESTION)
    cached.model_copy(update={"engine": None, "model_name": "nowhere"})  # loads nothing
    assert cached.invoke(markers[0] + QUESTION) == first
    assert cached.invoke(markers[1] + QUESTION) == llm.invoke(markers[1] + QUESTION)


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
    assert llm._loaded is compressor._loaded


def test_chain_of_prompt_and_parser(llm: UltraGistLLM, markers: list[str]) -> None:
    chain = PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:") | llm | StrOutputParser()
    expected = llm.invoke(markers[0] + "\n\nQuestion: {x} where?\nAnswer:")
    assert chain.invoke({"context": markers[0], "question": "{x} where?"}) == expected
