"""Read tool calls out of what a model wrote.

Is        `parse_tool_calls` for two styles: Hermes and Qwen (`<tool_call>{...}</tool_call>`), Llama 3 (bare JSON).
Flow      errors -> [tools] -> chat models of both frameworks. Imports no torch.
Source    the chat templates of NousResearch/Hermes-2-Pro, Qwen/Qwen2.5 and meta-llama/Llama-3.1.
Change    a style of calls.
Not here  how calls and results are written into a prompt -> memory/chat.py.
Holds     every text can be read: what is no valid call comes back as an invalid one or as text, never as an exception.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

__all__ = ["InvalidCall", "ToolCall", "parse_tool_calls"]

TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""Names that tools may have: plain words, since templates write them as they are."""

_TAG = re.compile(r"<tool_call>\s*")
_END_TAG = re.compile(r"\s*</tool_call>")
_AFTER = re.compile(r"\s*(?:$|</?tool_call>)")
_PYTHON_TAG = "<|python_tag|>"
_BARE = re.compile(r'\{\s*"(?:name|type|function|arguments|parameters)"\s*:')
_ARGUMENTS = re.compile('"(?:arguments|parameters)"')
_BETWEEN = re.compile(r"(?:[\s;,]|<\|python_tag\|>)*")
_DECODER = json.JSONDecoder()
_ID_DIGITS = 9  # templates of the Mistral family take ids of just this length


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
        name: Name of the tool.
        arguments: What to call it with.
        id: Made up here; the result of the call carries it.
    """

    name: str
    arguments: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(_ID_DIGITS)[:_ID_DIGITS])


@dataclass(frozen=True, slots=True)
class InvalidCall:
    """Something that was meant as a call but cannot be made.

    Attributes:
        text: What the model wrote.
        error: What is wrong with it.
    """

    text: str
    error: str


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall], list[InvalidCall]]:
    """Take the tool calls out of an answer.

    Args:
        text: What the model wrote, without special tokens or with them.

    Returns:
        The text around the calls, the calls in order, and what was meant as a call but is broken.

    Example:
        >>> rest, calls, invalid = parse_tool_calls('Wait. <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
        >>> rest, calls[0].name, calls[0].arguments, invalid
        ('Wait.', 'f', {'x': 1}, [])
    """
    if _TAG.search(text):
        return _tagged(text)
    return _bare(text.strip()) or (text, [], [])


def _tagged(text: str) -> tuple[str, list[ToolCall], list[InvalidCall]]:
    rest: list[str] = []
    calls: list[ToolCall] = []
    invalid: list[InvalidCall] = []
    end = 0
    while tag := _TAG.search(text, end):
        rest.append(text[end : tag.start()])
        value, stop, error = _decode(text, tag.end())
        if not error and not _AFTER.match(text, stop):
            error = "something stands behind the JSON object"
        closing = _END_TAG.search(text, tag.end()) if error else _END_TAG.match(text, stop)
        if error:
            stop = closing.start() if closing else len(text)
        _sort_in(value, text[tag.end() : stop], error, calls, invalid)
        end = closing.end() if closing else stop
    rest.append(text[end:])
    return "".join(rest).strip(), calls, invalid


def _bare(text: str) -> tuple[str, list[ToolCall], list[InvalidCall]] | None:
    """Read an answer that begins with a call; None if it is something else."""
    is_marked = text.startswith(_PYTHON_TAG)
    if not is_marked and not (_BARE.match(text) and '"name"' in text and _ARGUMENTS.search(text)):
        return None
    calls: list[ToolCall] = []
    invalid: list[InvalidCall] = []
    place = _skip(text, 0)
    while place < len(text) and (text[place] == "{" or not (calls or invalid)):
        value, end, error = _decode(text, place)
        end = len(text) if error else end
        _sort_in(value, text[place:end], error, calls, invalid)
        place = _skip(text, end)
    return text[place:], calls, invalid


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return found.end() if found else place


def _decode(text: str, start: int) -> tuple[Any, int, str]:
    """Read one JSON value; return it, the place behind it, and what is wrong."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return None, start, f"no valid JSON: {error}"
    return value, end, ""


def _sort_in(value: Any, text: str, error: str, calls: list[ToolCall], invalid: list[InvalidCall]) -> None:
    call = error or _as_call(value)
    if isinstance(call, ToolCall):
        calls.append(call)
    else:
        invalid.append(InvalidCall(text.strip(), call))


def _as_call(value: Any) -> ToolCall | str:
    """Make a call of a JSON value, or say what is wrong with it."""
    if not isinstance(value, dict):
        return "a call must be a JSON object"
    name = value.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        return f"the name of the tool is {name!r}, but must be a plain word"
    arguments: Any = next((value[key] for key in ("arguments", "parameters") if value.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments, _, error = _decode(arguments, 0)
        if error:
            return f"the arguments are {error}"
    if not isinstance(arguments, dict):
        return "the arguments must be a JSON object"
    return ToolCall(name, arguments)
