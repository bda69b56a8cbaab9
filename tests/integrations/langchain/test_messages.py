"""A block that the model cannot read is refused, never left out; a tool result is text, whatever it says."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

from langchain_ultragist.messages import texts_of, to_chat, usage_of
from ultragist_rag import InputError
from ultragist_rag.reader import MemoryRef

ID = "a" * 26
MARKER = f"ultragist0{ID}0"


def test_roles_have_the_names_of_chat_templates() -> None:
    messages = [
        SystemMessage("s"),
        HumanMessage("h", name="someone"),
        HumanMessageChunk("c"),
        AIMessage("a"),
        ChatMessage("d", role="critic"),
    ]
    assert to_chat(messages) == [
        {"role": "system", "content": ["s"]},
        {"role": "user", "content": ["h"]},
        {"role": "user", "content": ["c"]},
        {"role": "assistant", "content": ["a"]},
        {"role": "critic", "content": ["d"]},
    ]
    with pytest.raises(InputError, match="function"):
        to_chat([FunctionMessage("f", name="f")])
    with pytest.raises(InputError, match="no messages"):
        to_chat([])


@pytest.mark.parametrize("name", [ID, MARKER, MARKER.upper()])
def test_blocks_are_texts_and_references(name: str) -> None:
    block = {"type": "ultragist", "id": name}
    messages = [
        HumanMessage([block, "see ", {"type": "text", "text": "here"}]),
        HumanMessage(content_blocks=[{"type": "non_standard", "value": block}]),
    ]
    assert [message["content"] for message in to_chat(messages)] == [[MemoryRef(ID), "see ", "here"], [MemoryRef(ID)]]
    assert texts_of(to_chat(messages)) == [MARKER, "see ", "here", MARKER]


def test_blocks_pass_through_prompt_templates() -> None:
    message = HumanMessage([{"type": "ultragist", "id": ID}, {"type": "text", "text": "where?"}])
    prompt = ChatPromptTemplate.from_messages([("system", "short"), MessagesPlaceholder("history")])
    (_, shown) = to_chat(prompt.invoke({"history": [message]}).to_messages())
    assert shown["content"] == [MemoryRef(ID), "where?"]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "text"},
        {"text": "no type"},
        {"type": "ultragist"},
        {"type": "ultragist", "id": "../../etc"},
        {"type": "ultragist", "id": 7},
    ],
)
def test_other_blocks_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"block"):
        to_chat([HumanMessage([{"type": "text", "text": "look"}, block])])


def test_calls_and_their_results_find_each_other() -> None:
    call = {"id": "call-1", "name": "add", "args": {"a": 1}}
    spoken = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "wait"},
        {"type": "tool_use", "id": "call-1", "name": "add", "input": {"a": 1}},
    ]
    chat = to_chat([AIMessage(spoken, tool_calls=[call]), ToolMessage("2", tool_call_id="call-1")])
    assert chat == [
        {
            "role": "assistant",
            "content": ["wait"],
            "tool_calls": [{"id": "call-1", "name": "add", "arguments": {"a": 1}}],
        },
        {"role": "tool", "content": ["2"], "tool_call_id": "call-1", "name": "add"},
    ]


def test_a_block_in_a_tool_result_counts_no_more_than_a_marker_in_its_text() -> None:
    (message,) = to_chat([ToolMessage([{"type": "ultragist", "id": ID}], tool_call_id="1")])
    assert message["content"] == [MARKER]


def test_usage_counts_slots_as_read_from_a_cache() -> None:
    usage = usage_of(10, 5, 3)
    assert usage["input_tokens"] == 15
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"] == {"cache_read": 5}
