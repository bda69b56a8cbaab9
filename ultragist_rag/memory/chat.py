"""Render a conversation with the chat template of a tokenizer, without letting its contents write template.

Is        `render_chat`: messages in, prompt pieces out. The template sees a placeholder for every text and memory.
Flow      text, pieces -> [chat] -> roles -> reader.
Change    which parts of a message a template may see, in which ways it may write a text.
Not here  encoding of texts -> text.py; templates that refuse -> roles.py; markers of memories -> store/refs.py.
Holds     the special tokens of a rendered conversation are those of the template, whatever the messages say.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.tools import TOOL_NAME

__all__ = ["render_chat"]

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KEYS = {"role", "content", "name", "tool_call_id", "tool_calls"}

_PROBE = "'\"é"
"""Stands in every placeholder: what has become of it shows how the template writes a text at that place."""


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_ascii_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _as_literal(text: str) -> str:
    return repr(_PROBE + text)[len(repr(_PROBE)) - 1 : -1]


_WRITTEN: dict[str, Callable[[str], str]] = {
    _PROBE: str,
    _as_json(_PROBE): _as_json,
    _as_ascii_json(_PROBE): _as_ascii_json,
    repr(_PROBE)[1:-1]: _as_literal,
}
"""What becomes of the probe where a template writes a text as it is, in JSON, or in a Python literal."""


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **settings: Any,
) -> list[Tensor | GistMemory]:
    """Render messages as prompt pieces.

    The template is rendered with one placeholder of random letters for each text or memory. What the template wrote is
    encoded with its special tokens; every text is encoded without any, and put where its placeholder stands. Where the
    template writes JSON, texts are escaped as it would have done.

    Source: `apply_chat_template` of transformers; placeholders are ours.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Each with `role` and `content`: a text, or a list of texts and memories. An assistant's message may
            have `tool_calls`, a list of `{"name", "arguments", "id"}`; a tool's `tool_call_id`; any a `name`.
        add_generation_prompt: Whether the template opens the answer at the end.
        tools: Descriptions of tools for the template (JSON schema); trusted.
        settings: Passed on to the template, such as `enable_thinking`; trusted.

    Returns:
        Token ids of shape (tokens,) and memories in reading order, for `UltraGist.generate`.

    Raises:
        InputError: If there is no template, it refuses the messages or leaves one out, or a message is malformed.

    Example:
        >>> render_chat(tokenizer, [{"role": "user", "content": [memory, "What is it?"]}])  # doctest: +SKIP
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the tokenizer has no chat template: set tokenizer.chat_template, or write the prompt yourself."
        )
    hidden = _Hidden()
    skeleton = [_with_placeholders(message, hidden) for message in messages]
    settings |= {"add_generation_prompt": add_generation_prompt, "tools": list(tools) if tools else None}
    codec = TextCodec.of(tokenizer)
    pieces: list[Tensor | GistMemory] = []
    for part, is_template in hidden.fill(_render(tokenizer, skeleton, settings)):
        if isinstance(part, GistMemory):
            pieces.append(part)
            continue
        encode = codec.encode_template if is_template else codec.encode
        ids = encode(part, first=not pieces)
        if len(ids):
            pieces.append(ids)
    return pieces


class _Hidden:
    """Texts and memories that a template must not see, by the numbers of their placeholders."""

    def __init__(self) -> None:
        self._secret = "x" + secrets.token_hex(16)
        self._spans: list[str | GistMemory] = []
        self._needed: set[int] = set()

    def add(self, span: str | GistMemory, *, needed: bool = True) -> str:
        """Keep a text or memory; return its placeholder. What is not needed may be left out by the template."""
        number = len(self._spans)
        self._spans.append(span)
        if needed:
            self._needed.add(number)
        return f"{self._secret}n{number}e{_PROBE}"

    def add_value(self, value: Any) -> Any:
        """Return a JSON value with placeholders for all texts in it."""
        if isinstance(value, str):
            return self.add(value)
        if isinstance(value, Mapping):
            return {self.add_value(str(key)): self.add_value(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.add_value(entry) for entry in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise InputError(f"an argument of a tool call has the value {value!r}, but must be a JSON value.")

    def fill(self, text: str) -> list[tuple[str | GistMemory, bool]]:
        """Put texts and memories where their placeholders stand; say of each part whether the template wrote it."""
        escapes = "|".join(map(re.escape, _WRITTEN))
        first, *rest = re.split(f"{self._secret}n([0-9]+)e({escapes})", text)
        parts: list[tuple[str | GistMemory, bool]] = [(first, True)]
        seen = set()
        for number, escape, written in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            span = self._spans[int(number)]
            seen.add(int(number))
            parts += [(span if isinstance(span, GistMemory) else _WRITTEN[escape](span), False), (written, True)]
        if self._secret in "".join([first, *rest[2::3]]):
            raise InputError("the chat template changes the texts of messages in an unknown way: use another template.")
        if missing := self._needed - seen:
            raise InputError(
                f"the chat template shows {len(self._needed) - len(missing)} of {len(self._needed)} texts and "
                "memories: it leaves out some message. Leave it out yourself, or use another template."
            )
        return parts


def _with_placeholders(message: Mapping[str, Any], hidden: _Hidden) -> dict[str, Any]:
    """Copy a message with placeholders for its texts and memories, and in the form that templates know."""
    if not {"role", "content"} <= set(message) <= _KEYS:
        raise InputError(
            f"a message has the keys {', '.join(sorted(message))}, but must have role and content, and may have name, "
            "tool_call_id and tool_calls."
        )
    role, calls = message["role"], message.get("tool_calls")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InputError(f"a message has the role {role!r}, but must have a plain word such as user.")
    spans = _spans("" if calls and message["content"] is None else message["content"])
    # Some templates leave out what is said beside a tool call: so their models were trained.
    content = "".join(hidden.add(span, needed=not calls or isinstance(span, GistMemory)) for span in spans)
    copied: dict[str, Any] = {"role": role, "content": content}
    if calls:
        copied["tool_calls"] = [_call(call, hidden) for call in calls]
    if message.get("tool_call_id"):
        copied["tool_call_id"] = _checked(message["tool_call_id"], _ID, "the id of a tool call")
    if message.get("name"):
        copied["name"] = hidden.add(str(message["name"]), needed=False)
    return copied


def _spans(content: Any) -> list[str | GistMemory]:
    """Return the parts of a content with neighbouring texts joined and empty ones left out."""
    parts = [content] if isinstance(content, str | GistMemory) else content
    if not isinstance(parts, Sequence) or not all(isinstance(part, str | GistMemory) for part in parts):
        raise InputError(
            f"the content of a message is {content!r}, but must be a text or a list of texts and memories."
        )
    spans: list[str | GistMemory] = []
    for part in parts:
        last = spans[-1] if spans else None
        if isinstance(part, str) and isinstance(last, str):
            spans[-1] = last + part
        elif part != "":
            spans.append(part)
    return spans


def _call(call: Mapping[str, Any], hidden: _Hidden) -> dict[str, Any]:
    name, arguments = call.get("name"), call.get("arguments", {})
    if not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of a tool call are {arguments!r}, but must be a mapping.")
    function = {
        "name": _checked(name, TOOL_NAME, "the name of a tool"),
        "arguments": hidden.add_value(arguments),
    }
    copied: dict[str, Any] = {"type": "function", "function": function}
    if call.get("id"):
        copied["id"] = _checked(call["id"], _ID, "the id of a tool call")
    return copied


def _checked(value: Any, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InputError(f"{what} is {value!r}, but must be a plain word: letters, digits, _, - and dots.")
    return value


def _render(tokenizer: Any, messages: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses these messages: {error}") from error
    return text
