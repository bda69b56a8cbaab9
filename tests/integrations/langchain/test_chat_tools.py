"""Calls of tools, in the styles of Hermes and Llama 3; what is no call stays text."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from scripted import says, streamed

from langchain_ultragist import ChatUltraGist
from ultragist_rag import InputError

CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    """A city."""

    name: str


@pytest.fixture
def chat(chat_engine: Any) -> ChatUltraGist:
    return ChatUltraGist(engine=chat_engine, max_tokens=6)


@pytest.fixture
def tool_chat(hermes_engine: Any) -> ChatUltraGist:
    return ChatUltraGist(engine=hermes_engine, max_tokens=200)


def test_calls_become_tool_calls(tool_chat: ChatUltraGist) -> None:
    model = tool_chat.bind_tools([add])
    text = f"Let me add.\n<tool_call>\n{CALL}\n</tool_call>"
    answer = model.invoke("1 + 2?", prefix_allowed_tokens_fn=says(tool_chat, text))
    assert answer.content == "Let me add.\n"
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
    chunks, whole = streamed(model, "1 + 2?", prefix_allowed_tokens_fn=says(tool_chat, text))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content
    assert [(one["name"], one["args"]) for one in whole.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert add.invoke(call).content == "3"


def test_broken_calls_are_told_apart(tool_chat: ChatUltraGist) -> None:
    model = tool_chat.bind_tools([add])
    text = f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "add", "arguments": {{</tool_call>'
    answer = model.invoke("1 + 2?", prefix_allowed_tokens_fn=says(tool_chat, text))
    _, whole = streamed(model, "1 + 2?", prefix_allowed_tokens_fn=says(tool_chat, text))
    for message in (answer, whole):
        assert message.content == ""
        assert [call["name"] for call in message.tool_calls] == ["add"]
        assert [call["args"] for call in message.invalid_tool_calls] == [answer.invalid_tool_calls[0]["args"]]
        assert '"arguments": {' in message.invalid_tool_calls[0]["args"]


def test_calls_in_the_style_of_llama(llama_engine: Any) -> None:
    chat = ChatUltraGist(engine=llama_engine, max_tokens=200)
    text = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
    answer = chat.bind_tools([add]).invoke("1 + 2?", prefix_allowed_tokens_fn=says(chat, text))
    assert (answer.content, answer.tool_calls[0]["args"]) == ("", {"a": 1, "b": 2})
    forced = chat.bind_tools([add], tool_choice="any")
    answer = forced.invoke("1 + 2?", prefix_allowed_tokens_fn=says(chat, '{"a": 3, "b": 4}}'))
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 3, "b": 4})]


def test_without_tools_a_call_is_text(tool_chat: ChatUltraGist) -> None:
    text = f"<tool_call>{CALL}</tool_call>"
    answer = tool_chat.invoke("say it", prefix_allowed_tokens_fn=says(tool_chat, text))
    assert (answer.content, answer.tool_calls) == (text, [])
    model = tool_chat.bind_tools([add], tool_choice="none")
    assert model.invoke("say it", prefix_allowed_tokens_fn=says(tool_chat, text)).content == text


def test_tools_and_results_stand_in_the_prompt(tool_chat: ChatUltraGist) -> None:
    call = {"id": "call00001", "name": "add", "args": {"a": 1, "b": 2}}
    history: list[BaseMessage] = [HumanMessage("1 + 2?"), AIMessage("", tool_calls=[call])]
    history.append(ToolMessage("3", tool_call_id="call00001"))
    n_bare = tool_chat.get_num_tokens_from_messages(history)
    assert n_bare == 1 + len(f"[user]1 + 2?[assistant]<tool_call>{CALL}</tool_call>[tool]3")  # 1: the first token
    assert tool_chat.get_num_tokens_from_messages(history, tools=[add]) > n_bare + len("Add two numbers.")
    usage = tool_chat.bind_tools([add]).invoke(history, max_tokens=1).usage_metadata
    assert usage is not None
    assert usage["input_tokens"] == tool_chat.get_num_tokens_from_messages(history, tools=[add]) + len("[assistant]")


def test_structured_output(tool_chat: ChatUltraGist) -> None:
    model = tool_chat.with_structured_output(City)
    assert model.invoke("Oslo", prefix_allowed_tokens_fn=says(tool_chat, '{"name": "Oslo"}}')) == City(name="Oslo")
    both = tool_chat.with_structured_output(City.model_json_schema(), include_raw=True)
    result = both.invoke("Oslo", prefix_allowed_tokens_fn=says(tool_chat, "Oslo!"))
    assert isinstance(result, dict)
    assert result["parsed"] is None
    assert result["raw"].invalid_tool_calls


def test_models_without_tools_say_so(chat: ChatUltraGist) -> None:
    for ask in (lambda: chat.bind_tools([add]), lambda: chat.with_structured_output(City)):
        with pytest.raises(InputError, match="no place for tools"):
            ask()
    with pytest.raises(InputError, match="no place for tools"):
        chat.invoke("1 + 2?", tools=[add])
