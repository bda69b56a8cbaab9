"""What may become a call is held back until it is clear what it is; text that is no call comes out unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from langchain_ultragist.tool_text import ToolText, choose, opening_of
from ultragist_rag import InputError

CALL = '{"name": "add", "arguments": {"a": 1}}'
LLAMA_CALL = '{"name": "add", "parameters": {"a": 1}}'
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in ("add", "find")]


def run(text: str, size: int, opening: str = "") -> tuple[list[str], str, list[Any], list[Any]]:
    """Send a text through in bits; return what was shown, what was left, and the calls."""
    filtered = ToolText(opening)
    shown = [filtered.push(text[start : start + size]) for start in range(0, len(text), size)]
    return [part for part in shown if part], *filtered.finish()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", ""),
        (f"\n\n<tool_call>{CALL}</tool_call>\n", ""),
        (f"Let me see.\n<tool_call>{CALL}</tool_call>", "Let me see.\n"),
        (f"a < b <tool <tool_call>{CALL}", "a < b <tool "),
        (LLAMA_CALL, ""),
        (f" <|python_tag|>{LLAMA_CALL}", ""),
    ],
)
def test_calls_are_never_shown(text: str, content: str, size: int) -> None:
    shown, rest, calls, broken = run(text, size)
    assert "".join(shown) + rest == content
    assert [(call["name"], call["args"]) for call in calls] == [("add", {"a": 1})]
    assert calls[0]["id"]
    assert not broken


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text", ["", " ", "plain", " a <b> c", "<tool_", "x <tool_cal", '{"a": 1}', "{not json", "see {this}\n", "\n\nwell"]
)
def test_text_comes_out_unchanged(text: str, size: int) -> None:
    shown, rest, calls, broken = run(text, size)
    assert "".join(shown) + rest == text
    assert not calls
    assert not broken


def test_text_is_shown_as_soon_as_it_is_clear() -> None:
    filtered = ToolText()
    assert filtered.push("well") == "well"
    assert filtered.push(", a <to") == ", a "
    assert filtered.push("p>") == "<top>"


def test_several_calls() -> None:
    _, rest, calls, broken = run(f"<tool_call>{CALL}</tool_call>\n<tool_call>{{broken</tool_call>", 5)
    assert rest == ""
    assert len(calls) == len(broken) == 1
    assert "{broken" in broken[0]["args"]
    assert broken[0]["error"]


@pytest.mark.parametrize(("template", "key"), [("... <tool_call> ...", "arguments"), ("...", "parameters")])
@pytest.mark.parametrize("n_tools", [1, 2])
def test_what_follows_an_opening_makes_a_call(template: str, key: str, n_tools: int) -> None:
    opening = opening_of(TOOLS[:n_tools], template)
    whole = json.dumps({"name": "add", key: {"a": 1}})
    rest = whole[len(opening.removeprefix("<tool_call>\n")) :]
    shown, left, calls, broken = run(rest, 4, opening)
    assert (shown, left, broken) == ([], "", [])
    assert [(call["name"], call["args"]) for call in calls] == [("add", {"a": 1})]


def test_choices() -> None:
    for choice in (None, False, "auto"):
        assert choose(TOOLS, choice) == (TOOLS, False)
    for choice in (True, "any", "required"):
        assert choose(TOOLS, choice) == (TOOLS, True)
    for choice in ("find", {"type": "function", "function": {"name": "find"}}):
        assert choose(TOOLS, choice) == (TOOLS[1:], True)
    assert choose(TOOLS, "none") == ([], False)
    with pytest.raises(InputError, match="add, find"):
        choose(TOOLS, "forget")
