"""LlamaIndex's chat messages as the reader takes them.

Is        plain dictionaries with role, text, tool calls and the id of the call that a tool answers.
Flow      UltraGistLLM.chat -> [messages] -> ultragist_rag.reader. Imports the front door only.
Change    which blocks of a message a model can read.
Not here  the chat template, and what in a message must not act -> ultragist_rag.reader.
Holds     nothing of a message is left out silently: what cannot be read raises.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ultragist_rag.errors import InputError

__all__ = ["to_reader"]

_ROLES = {"developer": "system", "chatbot": "assistant", "model": "assistant", "function": "tool"}
"""Roles that mean one of those that chat templates know."""


def to_reader(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as plain dictionaries.

    Args:
        messages: Of text, citable text and tool calls; thoughts and cache points of other models are left out.

    Returns:
        One dictionary per message: `role`, `content`, and `tool_calls`, `tool_call_id` and `name` where they are given.

    Raises:
        InputError: If a message holds an image, sound, video, a file, or a tool call that is no JSON.
    """
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    given = {
        "role": _ROLES.get(message.role.value, message.role.value),
        "content": "\n".join(_texts(message.blocks)),
        "tool_calls": calls,
        "tool_call_id": message.additional_kwargs.get("tool_call_id"),
        "name": message.additional_kwargs.get("name"),
    }
    return {name: value for name, value in given.items() if value or name in ("role", "content")}


def _texts(blocks: Iterable[ContentBlock]) -> list[str]:
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, CitableBlock):
            texts += _texts(block.content)
        elif isinstance(block, CitationBlock):
            texts += _texts([block.cited_content])
        elif not isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
            raise InputError(
                f"a message holds a block of type {block.block_type}, but this model reads text only: leave it out, "
                "or put its words into a TextBlock."
            )
    return texts


def _call(block: ToolCallBlock) -> dict[str, Any]:
    arguments: Any = block.tool_kwargs
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise InputError(f"the arguments of a call of {block.tool_name} are no JSON: {error}.") from error
    if not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of a call of {block.tool_name} are {arguments!r}, but must be a dictionary.")
    return {"id": block.tool_call_id or "", "name": block.tool_name, "arguments": dict(arguments)}
