"""Whatever chain carries the documents: the model reads their memories, the chain hands on ids and metadata."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.summarize import load_summarize_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

from langchain_ultragist import ChatUltraGist, UltraGistCompressor, UltraGistLLM, expand_markers
from ultragist_rag import GistNotFoundError, GistStore

SEA, RAIN = "Oslo lies by the sea.", "Bergen has much rain."
TEMPLATE = "{context}\n\nQuestion: {input}\nAnswer:"
CHAT = ChatPromptTemplate.from_messages([("system", "Read: {context}"), ("human", "{input}")])


class Notes(BaseRetriever):
    """Finds the documents whose first word is in the question, else all."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        documents = [Document(text, id=text[:4], metadata={"source": f"{text[:4]}.md"}) for text in (SEA, RAIN)]
        return [one for one in documents if one.page_content.split()[0] in query] or documents


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def llm(chat_engine: Any, store: GistStore) -> UltraGistLLM:
    return UltraGistLLM(engine=chat_engine, store=store, max_tokens=4)


@pytest.fixture
def chat(chat_engine: Any, store: GistStore) -> ChatUltraGist:
    return ChatUltraGist(engine=chat_engine, store=store, max_tokens=4)


@pytest.fixture
def compressor(chat_engine: Any, store: GistStore) -> UltraGistCompressor:
    return UltraGistCompressor(engine=chat_engine, store=store, ratio=4)


@pytest.fixture
def retriever(compressor: UltraGistCompressor) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Notes())


@pytest.fixture
def documents(retriever: ContextualCompressionRetriever) -> list[Document]:
    return retriever.invoke("all")


def joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def asking(compressor: UltraGistCompressor, prompt: Any, model: Any) -> Any:
    context = Notes() | compressor.as_runnable() | RunnableLambda(joined)
    return {"context": context, "input": RunnablePassthrough()} | prompt | model | StrOutputParser()


async def test_lcel_invoke_stream_and_async_agree(
    compressor: UltraGistCompressor, llm: UltraGistLLM, chat_engine: Any
) -> None:
    chain = asking(compressor, PromptTemplate.from_template(TEMPLATE), llm)
    memories = chat_engine.compress([SEA, RAIN], ratio=4)
    prompt = [memories[0], "\n\n", memories[1], "\n\nQuestion: where?\nAnswer:"]
    expected = chat_engine.generate(prompt, max_new_tokens=4)
    assert chain.invoke("where?") == "".join(chain.stream("where?")) == await chain.ainvoke("where?") == expected
    assert "".join([part async for part in chain.astream("where?")]) == expected


def test_lcel_with_a_chat_model(compressor: UltraGistCompressor, chat: ChatUltraGist, reading: Any) -> None:
    reading.answers += ["there"]
    assert asking(compressor, CHAT, chat).invoke("where?") == "there"
    assert reading.prompts == [f"<|bos|>[system]Read: {{{SEA}}}\n\n{{{RAIN}}}[user]where?[assistant]"]


@pytest.mark.parametrize("template_format", ["f-string", "mustache", "jinja2"])
def test_every_format_of_prompts_keeps_markers(
    compressor: UltraGistCompressor, llm: UltraGistLLM, reading: Any, template_format: Any
) -> None:
    left, right = ("{", "}") if template_format == "f-string" else ("{{", "}}")
    template = TEMPLATE.replace("{", left).replace("}", right)
    prompt = PromptTemplate.from_template(template, template_format=template_format)
    asking(compressor, prompt, llm).invoke("where?")
    assert reading.prompts == [f"{{{SEA}}}\n\n{{{RAIN}}}\n\nQuestion: where?\nAnswer:"]


def test_lists_of_documents_in_a_prompt_keep_markers(
    compressor: UltraGistCompressor, llm: UltraGistLLM, reading: Any
) -> None:
    """A chain that forgets to join its documents shows the `repr` of the list."""
    chain = {"context": Notes() | compressor.as_runnable()} | PromptTemplate.from_template("{context}") | llm
    chain.invoke("Oslo")
    assert f"page_content='{{{SEA}}}'" in reading.prompts[0]


def test_parallel_branches_share_memories(
    compressor: UltraGistCompressor, llm: UltraGistLLM, chat: ChatUltraGist, reading: Any, store: GistStore
) -> None:
    prompt = PromptTemplate.from_template(TEMPLATE)
    both = RunnableParallel(llm=asking(compressor, prompt, llm), chat=asking(compressor, CHAT, chat))
    assert set(both.invoke("Oslo?")) == {"llm", "chat"}
    assert sorted(reading.prompts) == [
        f"<|bos|>[system]Read: {{{SEA}}}[user]Oslo?[assistant]",
        f"{{{SEA}}}\n\nQuestion: Oslo?\nAnswer:",
    ]
    assert len(store) == 1


@pytest.mark.parametrize("kind", ["llm", "chat"])
def test_batch_from_threads_equals_one_after_the_other(
    compressor: UltraGistCompressor, kind: str, request: pytest.FixtureRequest
) -> None:
    prompt = PromptTemplate.from_template(TEMPLATE) if kind == "llm" else CHAT
    chain = asking(compressor, prompt, request.getfixturevalue(kind))
    questions = [f"{town}, number {number}?" for number in range(4) for town in ("Oslo", "Bergen")]
    expected = [chain.invoke(question) for question in questions]
    assert chain.batch(questions, {"max_concurrency": 4}) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("kind", ["llm", "chat"])
def test_create_stuff_documents_chain(
    documents: list[Document], reading: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    template = ChatPromptTemplate.from_template(TEMPLATE) if kind == "chat" else PromptTemplate.from_template(TEMPLATE)
    document_prompt = PromptTemplate.from_template("[{source}] {page_content}")
    chain = create_stuff_documents_chain(
        request.getfixturevalue(kind), template, document_prompt=document_prompt, document_separator="\n"
    )
    chain.invoke({"context": documents, "input": "where?"})
    text = f"[Oslo.md] {{{SEA}}}\n[Berg.md] {{{RAIN}}}\n\nQuestion: where?\nAnswer:"
    assert reading.prompts == [text if kind == "llm" else f"<|bos|>[user]{text}[assistant]"]


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
@pytest.mark.parametrize("kind", ["stuff", "refine", "map_reduce"])
def test_legacy_chains_over_documents(llm: UltraGistLLM, documents: list[Document], reading: Any, kind: str) -> None:
    """Each document is read exactly once; what the model said about it before is text."""
    reading.answers += ["one", "two", "three"]
    chain = load_summarize_chain(llm, chain_type=kind)
    said = chain.invoke({"input_documents": documents})["output_text"]
    assert said == {"stuff": "one", "refine": "two", "map_reduce": "three"}[kind]
    assert [prompt.count(f"{{{SEA}}}") for prompt in reading.prompts] == [1, 0, 0][: len(reading.prompts)]
    in_rain = {"stuff": [1], "refine": [0, 1], "map_reduce": [0, 1, 0]}[kind]
    assert [prompt.count(f"{{{RAIN}}}") for prompt in reading.prompts] == in_rain
    if kind == "map_reduce":
        assert "one\n\ntwo" in reading.prompts[-1]


async def test_create_retrieval_chain_hands_on_sources(
    retriever: ContextualCompressionRetriever, chat: ChatUltraGist, reading: Any, store: GistStore
) -> None:
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(chat, CHAT))
    reading.answers += ["by the sea", "by the sea"]
    result = chain.invoke({"input": "Oslo?"})
    assert result == await chain.ainvoke({"input": "Oslo?"})
    assert result["answer"] == "by the sea"
    assert reading.prompts[0] == f"<|bos|>[system]Read: {{{SEA}}}[user]Oslo?[assistant]"
    (document,) = result["context"]
    assert (document.id, document.metadata["source"]) == ("Oslo", "Oslo.md")
    assert store.source(document.metadata["ultragist_id"]).text == SEA
    (shown,) = expand_markers(result["context"], store)
    assert (shown.page_content, shown.id) == (SEA, "Oslo")


def test_history_aware_retriever(retriever: ContextualCompressionRetriever, chat: ChatUltraGist, reading: Any) -> None:
    condense = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
    chain = create_retrieval_chain(
        create_history_aware_retriever(chat, retriever, condense), create_stuff_documents_chain(chat, CHAT)
    )
    reading.answers += ["Where is Oslo?", "by the sea"]
    history = [HumanMessage("Tell me about Oslo."), AIMessage("It is a town.")]
    result = chain.invoke({"input": "Where is it?", "chat_history": history})
    assert result["answer"] == "by the sea"
    assert reading.prompts == [
        "<|bos|>[user]Tell me about Oslo.[assistant]It is a town.[user]Where is it?[assistant]",
        f"<|bos|>[system]Read: {{{SEA}}}[user]Where is it?[assistant]",
    ]


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the machine is away")


@pytest.mark.parametrize("make_prompt", [lambda: CHAT, lambda: PromptTemplate.from_template(TEMPLATE)])
def test_fallback_to_a_model_that_is_not_ours_reads_the_texts(
    compressor: UltraGistCompressor, store: GistStore, make_prompt: Callable[[], Any]
) -> None:
    shown: list[Any] = []
    other = RunnableLambda(lambda prompt: (shown.append(prompt), prompt)[1]) | FakeListChatModel(
        responses=["by the sea"]
    )
    fallback = RunnableLambda(partial(expand_markers, store=store)) | other
    chain = asking(compressor, make_prompt(), RunnableLambda(failing).with_fallbacks([fallback]))
    assert chain.invoke("where?") == "by the sea"
    text = shown[0].to_string()
    assert f"{SEA}\n\n{RAIN}" in text
    assert "ultragist0" not in text


def test_fallback_when_memories_are_gone(
    compressor: UltraGistCompressor, chat: ChatUltraGist, store: GistStore, documents: list[Document]
) -> None:
    """A model that reads another namespace refuses; the fallback has the texts all the same."""
    foreign = chat.model_copy(update={"store": GistStore.open("memory://", namespace="other")})
    fallback = RunnableLambda(partial(expand_markers, store=store)) | FakeListChatModel(responses=["by the sea"])
    chain = asking(compressor, CHAT, foreign.with_fallbacks([fallback], exceptions_to_handle=(GistNotFoundError,)))
    assert chain.invoke("where?") == "by the sea"
