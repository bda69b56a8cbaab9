"""An agent over a retriever tool, with and without history middleware: it reads memories, its state keeps messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver

from langchain_ultragist import ChatUltraGist, UltraGistCompressor, UltraGistHistoryMiddleware
from langchain_ultragist.turns import write
from ultragist_rag import GistStore

TEXTS = {"Oslo": "Oslo lies by the sea.", "Bergen": "Bergen has much rain."}


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def retriever(hermes_engine: Any, store: GistStore) -> BaseRetriever:
    return ContextualCompressionRetriever(
        base_compressor=UltraGistCompressor(engine=hermes_engine, store=store, ratio=4),
        base_retriever=RunnableLambda(lambda town: [Document(TEXTS[town])]),
    )


@pytest.fixture
def model(hermes_engine: Any, store: GistStore) -> ChatUltraGist:
    return ChatUltraGist(engine=hermes_engine, store=store, max_tokens=2)


def find(town: str) -> str:
    return f"<tool_call>{json.dumps({'name': 'find', 'arguments': {'query': town}})}</tool_call>"


def agent_of(model: Any, retriever: BaseRetriever, **settings: Any) -> Any:
    return create_agent(model, [create_retriever_tool(retriever, "find", "Finds notes on a town.")], **settings)


def asked(question: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(question)]}


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_agent_reads_what_its_tool_found(
    model: ChatUltraGist, retriever: BaseRetriever, store: GistStore, reading: Any, how: str
) -> None:
    agent = agent_of(model, retriever, system_prompt="Use your tool.")
    reading.answers += [find("Oslo"), "By the sea."]
    inputs = asked("Where is Oslo?")
    state = await agent.ainvoke(inputs) if how == "async" else agent.invoke(inputs)
    question, call, result, answer = state["messages"]
    assert (question.type, answer.text) == ("human", "By the sea.")
    assert call.tool_calls[0]["args"] == {"query": "Oslo"}
    assert store.source(result.text).text == TEXTS["Oslo"]
    first, second = reading.prompts
    assert "[system]Use your tool.[user]Where is Oslo?[assistant]" in first
    assert f"[tool]{{{TEXTS['Oslo']}}}[assistant]" in second
    assert answer.usage_metadata["input_token_details"]["cache_read"] == store.get(result.text).slots


@pytest.fixture
def compressed(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    compress = type(text_engine).compress
    monkeypatch.setattr(
        type(text_engine), "compress", lambda this, new, **more: (texts.extend(new), compress(this, new, **more))[1]
    )
    return texts


def talk(agent: Any, thread: str, reading: Any) -> list[AnyMessage]:
    """Ask three questions in one thread; return what the checkpointer holds."""
    config: Any = {"configurable": {"thread_id": thread}}
    for town, answer in (("Oslo", "By the sea."), ("Bergen", "Where it rains."), ("Oslo", "As I said.")):
        reading.answers += [find(town), answer]
        agent.invoke(asked(f"{thread}: where is {town}?"), config)
    messages: list[AnyMessage] = agent.get_state(config).values["messages"]
    return messages


def test_checkpointer_keeps_messages_while_the_model_reads_memories(
    model: ChatUltraGist, retriever: BaseRetriever, store: GistStore, reading: Any, compressed: list[str]
) -> None:
    history = UltraGistHistoryMiddleware(trigger=("messages", 5), keep=("messages", 1))
    agent = agent_of(model, retriever, middleware=[history], checkpointer=InMemorySaver())
    messages = talk(agent, "a", reading)
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"] * 3
    assert all(isinstance(message.content, str) for message in messages)
    first, second = (write(messages[start : start + 4]) for start in (0, 4))
    assert compressed == [TEXTS["Oslo"], first, TEXTS["Bergen"], second]
    assert "calls find" in first
    # Two memories of turns, each with the document that was found in it, unless it was found again since.
    oslo, bergen = (f"{{{TEXTS[town]}}}" for town in ("Oslo", "Bergen"))
    *_, before, last = reading.prompts
    start = "[user]Earlier in this conversation:\n"
    assert before.endswith(f"{start}{{{first}}}{oslo}{{{second}}}{bergen}\n\na: where is Oslo?[assistant]")
    assert f"{start}{{{first}}}{{{second}}}{bergen}\n\na: where is Oslo?[assistant]<tool_call>" in last
    assert last.endswith(f"[tool]{oslo}[assistant]")


def test_threads_do_not_see_each_other(model: ChatUltraGist, retriever: BaseRetriever, reading: Any) -> None:
    history = UltraGistHistoryMiddleware(keep=("messages", 2))
    agent = agent_of(model, retriever, middleware=[history], checkpointer=InMemorySaver())
    for thread in ("red", "blue"):
        talk(agent, thread, reading)
    of_red, of_blue = reading.prompts[:6], reading.prompts[6:]
    assert all("blue:" not in prompt for prompt in of_red)
    assert all("red:" not in prompt for prompt in of_blue)


def test_long_runs_of_tools_are_shortened_too(
    model: ChatUltraGist, retriever: BaseRetriever, reading: Any, compressed: list[str]
) -> None:
    agent = agent_of(model, retriever, middleware=[UltraGistHistoryMiddleware(keep=("messages", 2))])
    reading.answers += [*(find(town) for town in ("Oslo", "Bergen", "Oslo", "Bergen")), "Done."]
    state = agent.invoke(asked("Compare."))
    assert state["messages"][-1].text == "Done."
    steps = [write(state["messages"][start : start + 2]) for start in (1, 3, 5, 7)]
    assert [text for text in compressed if text not in TEXTS.values()] == list(dict.fromkeys(steps[:3]))
    assert "[user]Compare.\n\nDone so far:\n{Assistant:" in reading.prompts[-1]


def test_middleware_behind_a_fallback_leaves_the_other_model_its_messages(
    hermes_engine: Any, store: GistStore, reading: Any
) -> None:
    class Broken(ChatUltraGist):
        def _generate(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("the machine is away")

    seen: list[Any] = []

    class Other(GenericFakeChatModel):
        def _generate(self, messages: Any, *more: Any, **settings: Any) -> Any:
            seen.extend(messages)
            return super()._generate(messages, *more, **settings)

    other = Other(messages=iter([AIMessage("from elsewhere")]))
    agent = create_agent(
        Broken(engine=hermes_engine, store=store),
        middleware=[ModelFallbackMiddleware(other), UltraGistHistoryMiddleware(keep=("messages", 1))],
    )
    conversation = [HumanMessage("One?"), AIMessage("One."), HumanMessage("Two?")]
    state = agent.invoke({"messages": conversation})
    assert state["messages"][-1].text == "from elsewhere"
    assert [message.text for message in seen] == ["One?", "One.", "Two?"]
    assert len(store) == 1  # the turn was compressed for ours
