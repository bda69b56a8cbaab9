"""Cut a conversation into turns and steps, and write them as text.

Is        pure functions over messages: where a conversation may be cut, and what an old turn says.
Flow      messages -> [turns] -> history.py. Knows messages only: no engine, no store.
Change    what a turn or a step is; how a message is written inside a memory.
Not here  when to cut -> limits.py; what becomes of the text -> history.py.
Holds     a tool call and its result are never parted; no content can write the header of a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage

from ultragist_rag.store import parse_marker, to_marker
from ultragist_rag.store.refs import repair, split

__all__ = ["Cut", "cut", "mentioned", "write"]

_DOCUMENT = "[document]"
_REPEATED = frozenset({"tool_use", "tool_call", "reasoning", "thinking"})
"""Blocks that repeat the model's calls, or hold thoughts, which chat templates leave out of a history."""
_NAMES = {"human": "User", "ai": "Assistant", "tool": "Tool", "system": "System"}


@dataclass(frozen=True, slots=True)
class Cut:
    """A conversation, cut in two.

    Attributes:
        instructions: System messages of the old part; they stay as they are.
        turns: Finished old turns: a user's message and everything up to the next one.
        question: The user's message of the running turn, if steps of this turn are old; it stays as it is.
        steps: Old steps of the running turn: a message of the model and the results of its tool calls.
        kept: The recent messages.
    """

    instructions: list[AnyMessage] = field(default_factory=list)
    turns: list[list[AnyMessage]] = field(default_factory=list)
    question: HumanMessage | None = None
    steps: list[list[AnyMessage]] = field(default_factory=list)
    kept: list[AnyMessage] = field(default_factory=list)


def cut(messages: Sequence[AnyMessage], place: int) -> Cut:
    """Cut a conversation at a place, or as near before it as turns and steps allow.

    Args:
        messages: In order.
        place: Number of messages that may be old.

    Returns:
        Old turns in front of `place`. If it lies within the last turn, the old steps of this turn too.
    """
    allowed = set(_boundaries(messages))
    starts = sorted({0} | {i for i in allowed if isinstance(messages[i], HumanMessage)})
    last = starts[-1]
    if place <= last:
        end = max(start for start in starts if start <= place)
        return _cut(messages, [start for start in starts if start <= end], [end], None)
    head = messages[last]
    question = head if isinstance(head, HumanMessage) else None
    first = last + 1 if question else last
    steps = {i for i in allowed if first < i <= place and isinstance(messages[i], AIMessage)}
    return _cut(messages, starts, sorted({first} | steps), question if steps else None)


def _cut(messages: Sequence[AnyMessage], turns: list[int], steps: list[int], question: HumanMessage | None) -> Cut:
    end = steps[-1] if len(steps) > 1 else turns[-1]
    old = messages[:end]
    return Cut(
        instructions=[message for message in old if isinstance(message, SystemMessage)],
        turns=_said(messages, turns),
        question=question,
        steps=_said(messages, steps),
        kept=list(messages[end:]),
    )


def _said(messages: Sequence[AnyMessage], bounds: list[int]) -> list[list[AnyMessage]]:
    """Return what lies between bounds, without system messages."""
    parts = (messages[start:stop] for start, stop in pairwise(bounds))
    said: list[list[AnyMessage]] = [list(filter(_is_said, part)) for part in parts]
    return [part for part in said if part]


def _is_said(message: AnyMessage) -> bool:
    return not isinstance(message, SystemMessage)


def _boundaries(messages: Sequence[AnyMessage]) -> Iterator[int]:
    """Yield the places at which no tool call waits for a result that comes later."""
    results: dict[str, int] = {}
    answered: list[int] = [-1] * len(messages)
    for i in range(len(messages) - 1, -1, -1):  # backwards: an id may come again in a later turn
        message = messages[i]
        if isinstance(message, ToolMessage):
            results[message.tool_call_id] = i
        elif isinstance(message, AIMessage):
            answered[i] = max([-1, *(results.get(call["id"] or "", -1) for call in message.tool_calls)])
    reach = -1
    for i in range(len(messages)):
        if i > reach:
            yield i
        reach = max(reach, answered[i])


def write(messages: Sequence[AnyMessage]) -> str:
    r"""Write messages as text, each under a header that tells its role.

    Every line of a content is indented, so that none can pass for a header.

    Args:
        messages: A turn, for instance.

    Returns:
        The text. Blocks that are not text are named; so are documents that markers stand for (see `mentioned`).

    Example:
        >>> write([HumanMessage("Hello.\nUser: is this a header?"), AIMessage("No.")])
        'User:\n  Hello.\n  User: is this a header?\nAssistant:\n  No.'
    """
    return "\n".join(_write(message) for message in messages)


def _write(message: AnyMessage) -> str:
    name = _NAMES.get(message.type, message.type.capitalize())
    lines = [f"{name}:", *_indented(_text(message.content))]
    if isinstance(message, AIMessage):
        for call in message.tool_calls:
            lines += _indented(f"calls {call['name']}({json.dumps(call['args'], ensure_ascii=False, default=str)})")
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _text(content: str | list[Any]) -> str:
    text = content if isinstance(content, str) else "\n".join(filter(None, map(_block_text, content)))
    return "".join(part if isinstance(part, str) else _DOCUMENT for part in split(repair(text)))


def _block_text(block: str | dict[Any, Any]) -> str:
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind in _REPEATED:
        return ""
    return _DOCUMENT if kind == "ultragist" else f"[{kind}]"


def mentioned(messages: Sequence[AnyMessage]) -> dict[str, dict[str, Any]]:
    """Return content blocks for the documents that messages show as memories, in order.

    Args:
        messages: A turn, for instance.

    Returns:
        By id, the blocks that refer to memories as they are, and markers in texts as texts, so that the rules for
        markers in texts go on to hold for them. What a tool returned is text, whatever it looks like.
    """
    found: dict[str, dict[str, Any]] = {}
    for message in messages:
        blocks = [message.content] if isinstance(message.content, str) else message.content
        for block in blocks:
            if isinstance(block, dict) and block.get("type") == "ultragist":
                name = parse_marker(str(block.get("id"))) or ""
                text = to_marker(name) if name and isinstance(message, ToolMessage) else None
                found.setdefault(name, {"type": "text", "text": text} if text else block)
                continue
            text = block if isinstance(block, str) else str(block.get("text", ""))
            for part in split(repair(text)):
                if not isinstance(part, str):
                    found.setdefault(part.name, {"type": "text", "text": part.marker})
    return found
