"""Tool calls in an answer: kept out of what is shown, and turned into LangChain's calls.

Is        a filter that text runs through as it comes, so that a stream shows what a whole answer shows; `tool_choice`.
Flow      tokens of the model -> [tool_text] -> content and tool calls of an AI message.
Change    how a call is forced.
Not here  the two formats of calls -> ultragist_rag.tools; tools in the prompt -> the chat template.
Holds     what may become a call is held back until it is clear what it is; text that is no call comes out unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import InvalidToolCall, ToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from ultragist_rag.errors import InputError
from ultragist_rag.tools import parse_tool_calls

__all__ = ["PlainText", "ToolText", "choose", "opening_of"]

_TAGS = ("<tool_call>", "<|python_tag|>")
"""Begin a call wherever they stand; a call may do without only where the answer begins, with a brace."""

_FORCED = ("any", "required", True)


class PlainText:
    """Takes an answer to a prompt without tools; all of it can be shown."""

    def push(self, text: str) -> str:
        """Take text; return it."""
        return text

    def finish(self) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
        """Return that nothing was held back."""
        return "", [], []


class ToolText:
    """Takes an answer bit by bit; gives what can be shown, and at the end the calls."""

    def __init__(self, opening: str = "") -> None:
        """Begin with the text that was put into the model's mouth."""
        self._held = ""
        self._is_call = self._has_shown = False
        self.push(opening)

    def push(self, text: str) -> str:
        """Take text; return what is certain to be no part of a call."""
        self._held += text
        if self._is_call:
            return ""
        if not self._has_shown and self._held.lstrip()[:1] in ("", "{"):
            self._is_call = self._held.lstrip()[:1] == "{"
            return ""
        places = [place for place in map(self._held.find, _TAGS) if place >= 0]
        self._is_call = bool(places)
        cut = min(places) if places else len(self._held) - max(_overlap(self._held, tag) for tag in _TAGS)
        shown, self._held = self._held[:cut], self._held[cut:]
        if not self._has_shown and not shown.strip():  # a line break in front of a call
            self._held = shown + self._held
            return ""
        self._has_shown = True
        return shown

    def finish(self) -> tuple[str, list[ToolCall], list[InvalidToolCall]]:
        """Return the text that was held back and is no call, the calls, and calls that are broken."""
        held, self._held = self._held, ""
        if not self._is_call:
            return held, [], []
        rest, calls, broken = parse_tool_calls(held)
        if not calls and not broken:
            return held, [], []
        return (
            rest if rest.strip() else "",
            [tool_call(name=call.name, args=call.arguments, id=call.id) for call in calls],
            # What is wrong stands in front, or LangChain would mend the JSON of a streamed call, however broken it is.
            [invalid_tool_call(args=f"{one.error}: {one.text}", error=one.error) for one in broken],
        )


def choose(
    tools: Sequence[dict[str, Any]], choice: str | bool | dict[str, Any] | None
) -> tuple[list[dict[str, Any]], bool]:
    """Apply a `tool_choice`.

    Args:
        tools: In OpenAI's format.
        choice: None, False or `auto`: the model may call; `none`: it cannot; True, `any` or `required`: it must call
            one; the name of a tool, or OpenAI's dict around it: it must call that one.

    Returns:
        The tools to show, and whether a call is forced.

    Raises:
        InputError: If the choice names no tool.
    """
    if not choice or choice == "auto":
        return list(tools), False
    if choice == "none":
        return [], False
    if choice in _FORCED:
        return list(tools), True
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else choice
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        names = ", ".join(tool["function"]["name"] for tool in tools)
        raise InputError(f"tool_choice is {choice!r}, but the tools are {names}: name one, or say auto, any or none.")
    return chosen, True


def opening_of(tools: Sequence[dict[str, Any]], template: str) -> str:
    """Return how a call begins, as the model must go on that answers to this template.

    Args:
        tools: Those it may call; with one, its name is part of the beginning.
        template: The chat template, which shows the model how to write calls.

    Returns:
        Text to put behind the prompt and in front of the answer.
    """
    tag, arguments = ("<tool_call>\n", "arguments") if "<tool_call>" in template else ("", "parameters")
    if len(tools) > 1:
        return f'{tag}{{"name": "'
    return f'{tag}{{"name": {json.dumps(tools[0]["function"]["name"])}, "{arguments}": '


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of a text with which the tag begins."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
