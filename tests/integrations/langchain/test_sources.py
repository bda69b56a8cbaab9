"""An answer that is asked to says which memories it was read from, by id, score and stored metadata."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk, HumanMessage
from pydantic import ValidationError

from langchain_ultragist import ChatUltraGist, UltraGistCompressor, UltraGistLLM
from ultragist_rag import GistStore
from ultragist_rag.store import to_marker

QUESTION = "\n\nQuestion: where?\nAnswer:"
KINDS = ("attention", "leave-one-out")


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def documents(chat_engine: Any, store: GistStore) -> list[Document]:
    found = [
        Document("Oslo lies by the sea.", metadata={"source": "oslo.md", "page": 3}),
        Document("Bergen has much rain, all the year.", metadata={"source": "bergen.md"}),
        Document("Voss"),
    ]
    return list(UltraGistCompressor(engine=chat_engine, store=store).compress_documents(found, ""))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def prompt_of(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents) + QUESTION


def expected(engine: Any, store: GistStore, documents: list[Document], pieces: Any, kind: str) -> list[Any]:
    scores = engine.answer(pieces, sources=kind, max_new_tokens=6).sources
    return [
        {
            "id": document.metadata["ultragist_id"],
            "score": pytest.approx(score, abs=1e-5),
            "metadata": {name: value for name, value in document.metadata.items() if name != "ultragist_id"},
        }
        for document, score in zip(documents, scores, strict=True)
    ]


async def test_every_way_to_complete_names_the_sources(
    chat_engine: Any, store: GistStore, documents: list[Document], kind: Any
) -> None:
    llm = UltraGistLLM(engine=chat_engine, store=store, max_tokens=6, sources=kind)
    prompt, plain = prompt_of(documents), llm.model_copy(update={"sources": None})
    cited = expected(chat_engine, store, documents, store.resolve(chat_engine, prompt), kind)
    result = llm.generate([prompt, "no memory" + QUESTION])
    assert [one[0].generation_info["sources"] for one in result.generations] == [cited, []]
    assert (await llm.agenerate([prompt])).generations[0][0].generation_info["sources"] == cited
    without = plain.generate([prompt]).generations[0][0]
    assert result.generations[0][0].text == without.text
    assert "sources" not in without.generation_info
    of_call = plain.generate([prompt], sources=kind).generations[0][0]
    assert of_call.generation_info["sources"] == cited
    chunks = list(llm._stream(prompt))
    assert chunks[-1].generation_info["sources"] == cited
    assert "sources" not in list(plain._stream(prompt))[-1].generation_info


async def test_every_way_to_chat_names_the_sources(
    chat_engine: Any, store: GistStore, documents: list[Document], kind: Any
) -> None:
    chat = ChatUltraGist(engine=chat_engine, store=store, max_tokens=6, sources=kind)
    block = {"type": "ultragist", "id": documents[0].metadata["ultragist_id"]}
    messages = [HumanMessage([block, prompt_of(documents[1:])])]
    pieces = chat._prompt(chat._reader(), messages, {})[0]
    cited = expected(chat_engine, store, documents, pieces, kind)
    answer = chat.invoke(messages)
    assert answer.response_metadata["sources"] == cited
    assert (await chat.ainvoke(messages)).response_metadata["sources"] == cited
    plain = chat.model_copy(update={"sources": None}).invoke(messages)
    assert plain.content == answer.content
    assert "sources" not in plain.response_metadata
    whole = AIMessageChunk(content="")
    for chunk in chat.stream(messages):
        whole += chunk
    assert whole.response_metadata["sources"] == cited
    assert whole.content == answer.content


def test_a_memory_that_is_mentioned_twice_is_one_source(
    chat_engine: Any, store: GistStore, documents: list[Document]
) -> None:
    llm = UltraGistLLM(engine=chat_engine, store=store, max_tokens=6, sources="attention")
    first, second, _ = (document.metadata["ultragist_id"] for document in documents)
    prompt = f"{to_marker(second)} {to_marker(first)} {to_marker(second)}{QUESTION}"
    sources = llm.generate([prompt]).generations[0][0].generation_info["sources"]
    assert [source["id"] for source in sources] == [second, first]
    assert sum(source["score"] for source in sources) == pytest.approx(1)


def test_without_source_records_there_are_ids_and_scores(chat_engine: Any) -> None:
    store = GistStore.open("memory://", keep_source=False)
    (marker,) = store.get_or_compress(chat_engine, ["Oslo lies by the sea."], metadata=[{"source": "oslo.md"}])
    chat = ChatUltraGist(engine=chat_engine, store=store, max_tokens=6, sources="attention")
    (source,) = chat.invoke(marker).response_metadata["sources"]
    assert source == {"id": marker[len("ultragist0") : -1], "score": 1.0, "metadata": {}}


def test_a_cached_answer_without_sources_is_not_given_to_who_asks_for_them(
    chat_engine: Any, store: GistStore, documents: list[Document]
) -> None:
    cache = InMemoryCache()
    settings = {"engine": chat_engine, "store": store, "max_tokens": 6, "cache": cache}
    prompt = prompt_of(documents)
    ChatUltraGist(**settings).invoke(prompt)
    told = [ChatUltraGist(**settings, sources="attention").invoke(prompt) for _ in range(2)]
    assert [len(answer.response_metadata["sources"]) for answer in told] == [3, 3]


def test_another_way_to_find_sources_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave-one-out"):
        UltraGistLLM(sources="gradients")  # type: ignore[arg-type]
