"""Render a conversation with the chat template of a tokenizer, without letting its contents write template.

Is        `render_chat`: messages in, prompt pieces out. The template sees a placeholder for every text and memory.
Flow      text, pieces -> [chat] -> integrations.
Change    which parts of a message a template may see.
Not here  encoding of texts -> text.py; markers of stored memories -> store/refs.py.
Holds     the special tokens of a rendered conversation are those of the template, whatever the messages say.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.text import TextCodec

__all__ = ["render_chat"]

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **settings: Any,
) -> list[Tensor | GistMemory]:
    """Render messages as prompt pieces.

    The template is rendered with one placeholder of random letters for each text or memory. What the template wrote is
    encoded with its special tokens; every text is encoded without any, and put where its placeholder stands.

    Source: `apply_chat_template` of transformers; placeholders are ours.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Each with `role` and `content`: a text, or a list of texts and memories.
        add_generation_prompt: Whether the template opens the answer at the end.
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
    secret = "x" + secrets.token_hex(16)
    spans: list[str | GistMemory] = []
    skeleton = [_with_placeholders(message, spans, secret) for message in messages]
    text = _render(tokenizer, skeleton, {"add_generation_prompt": add_generation_prompt, **settings})
    codec = TextCodec.of(tokenizer)
    pieces: list[Tensor | GistMemory] = []
    seen = set()
    for part in re.split(f"({secret}n[0-9]+e)", text):
        if part.startswith(secret):
            number = int(part[len(secret) + 1 : -1])
            seen.add(number)
            span = spans[number]
            piece = span if isinstance(span, GistMemory) else codec.encode(span, first=not pieces)
        else:
            piece = codec.encode_template(part, first=not pieces)
        if isinstance(piece, GistMemory) or len(piece):
            pieces.append(piece)
    if len(seen) < len(spans):
        raise InputError(
            f"the chat template shows {len(seen)} of {len(spans)} texts and memories: it leaves out some message. "
            "Leave it out yourself, or use another template."
        )
    return pieces


def _with_placeholders(message: Mapping[str, Any], spans: list[str | GistMemory], secret: str) -> dict[str, str]:
    """Copy a message with placeholders for its spans, which are appended to `spans`."""
    if set(message) != {"role", "content"}:
        raise InputError(f"a message has the keys {', '.join(sorted(message))}, but must have role and content only.")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InputError(f"a message has the role {role!r}, but must have a plain word such as user.")
    parts = [content] if isinstance(content, str | GistMemory) else content
    if not isinstance(parts, Sequence) or not all(isinstance(part, str | GistMemory) for part in parts):
        raise InputError(
            f"the content of a message is {content!r}, but must be a text or a list of texts and memories."
        )
    start = len(spans)
    for part in parts:
        if isinstance(part, str) and len(spans) > start and isinstance(spans[-1], str):
            spans[-1] += part
        else:
            spans.append(part)
    return {"role": role, "content": "".join(f"{secret}n{number}e" for number in range(start, len(spans)))}


def _render(tokenizer: Any, messages: list[dict[str, str]], settings: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"the chat template refuses these messages: {error}") from error
    return text
