"""LangChain messages as the plain messages that a chat template takes, and what an answer says about its tokens.

Is        roles, texts, references to memories, tool calls and tool results; nothing else has a place in a prompt.
Flow      chat history -> [messages] -> ultragist_rag.reader -> chat template.
Change    which content blocks a model reads.
Not here  markers in texts, special tokens, templates -> ultragist_rag; tool calls in answers -> tool_text.py.
Holds     a block that the model cannot read is refused, never left out; a tool result is text, whatever it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

from ultragist_rag.errors import InputError
from ultragist_rag.reader import MemoryRef
from ultragist_rag.store import parse_marker, to_marker

__all__ = ["BLOCK", "texts_of", "to_chat", "usage_of"]

BLOCK = "ultragist"
"""Type of the content block that stands for a memory: `{"type": "ultragist", "id": marker or id}`."""

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_NOT_TEXT = frozenset({"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "reasoning", "thinking"})
"""Blocks of an AI message that repeat its tool calls, or hold thoughts that templates leave out of a history."""


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Turn messages into those of a chat template.

    Args:
        messages: A conversation.

    Returns:
        Messages as `ultragist_rag.reader.Reader.chat_pieces` takes them, in order.

    Raises:
        InputError: If there is no message, or one has a type or a content block that no template can show.
    """
    if not messages:
        raise InputError("there are no messages: pass one at least.")
    names: dict[str, str] = {}  # of the tools that were called
    chat = []
    for message in messages:
        entry: dict[str, Any] = {"role": _role(message), "content": _content(message)}
        if isinstance(message, AIMessage) and message.tool_calls:
            names.update({call["id"]: call["name"] for call in message.tool_calls if call["id"]})
            entry["tool_calls"] = [
                {"id": call["id"] or "", "name": call["name"], "arguments": call["args"]} for call in message.tool_calls
            ]
        if isinstance(message, ToolMessage):
            entry["tool_call_id"] = message.tool_call_id
            name = names.get(message.tool_call_id) or message.name
            entry |= {"name": name} if name else {}
        chat.append(entry)
    return chat


def texts_of(chat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of messages that `to_chat` made, each reference as its marker."""
    parts = [part for message in chat for part in message["content"]]
    return [part if isinstance(part, str) else to_marker(part.id) for part in parts]


def usage_of(n_prompt_tokens: int, n_slots: int, n_tokens: int) -> UsageMetadata:
    """Say what an answer took: slots of memories count as input that was read from a cache."""
    n_input = n_prompt_tokens + n_slots
    return UsageMetadata(
        input_tokens=n_input,
        output_tokens=n_tokens,
        total_tokens=n_input + n_tokens,
        input_token_details=InputTokenDetails(cache_read=n_slots),
    )


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    kind = message.type.removesuffix("MessageChunk").lower()
    if kind not in _ROLES:
        raise InputError(f"a message has the type {message.type!r}, but can be {', '.join(_ROLES)} or chat.")
    return _ROLES[kind]


def _content(message: BaseMessage) -> list[str | MemoryRef]:
    blocks = [message.content] if isinstance(message.content, str) else message.content
    return [part for part in (_part(block, message) for block in blocks) if part is not None]


def _part(block: str | Mapping[str, Any], message: BaseMessage) -> str | MemoryRef | None:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "non_standard":  # how LangChain passes on blocks that it does not know
        return _part(block["value"], message)
    if kind == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    if kind == BLOCK:
        return _reference(block, message)
    if isinstance(message, AIMessage) and kind in _NOT_TEXT:
        return None
    raise InputError(
        f"a {message.type} message has a content block of type {kind!r}, which the model cannot read: it reads text "
        f"and {BLOCK} blocks only. Take it out, or describe it in words."
    )


def _reference(block: Mapping[str, Any], message: BaseMessage) -> str | MemoryRef:
    name = parse_marker(block["id"]) if isinstance(block.get("id"), str) else None
    if name is None:
        raise InputError(
            f"an {BLOCK} block has the id {block.get('id')!r}, but must have the marker or id that the store gave."
        )
    # Tools hand on what strangers wrote, blocks included: theirs count no more than a marker in a text.
    return to_marker(name) if isinstance(message, ToolMessage) else MemoryRef(name)
