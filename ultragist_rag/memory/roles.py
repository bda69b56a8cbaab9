"""Fit a conversation to a chat template that knows fewer roles, or a stricter order, than the conversation has.

Is        `render_fitting`: as it is if the template takes it, else with neighbours merged, else without system role.
Flow      chat -> [roles] -> reader.
Change    how a conversation is bent to fit, in which order that is tried.
Not here  placeholders and encoding -> chat.py.
Holds     no text gets lost: it moves into a neighbouring message.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.chat import render_chat
from ultragist_rag.memory.memory import GistMemory

__all__ = ["render_fitting"]

_BETWEEN = "\n\n"
_ID_CHARACTERS = 9  # some templates take ids of tool calls of just this length

Message = Mapping[str, Any]


def render_fitting(tokenizer: Any, messages: Sequence[Message], **settings: Any) -> list[Tensor | GistMemory]:
    """Render messages as prompt pieces, bending them if the template refuses them or leaves one out.

    First neighbours of one role are merged and ids of tool calls shortened, for templates in which roles must
    alternate; then the system text is put in front of the first user message, for those without a system role.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: As for `render_chat`; contents are lists.
        settings: As for `render_chat`.

    Returns:
        Token ids of shape (tokens,) and memories in reading order.

    Raises:
        InputError: If the template takes none of these forms; what it says about the first.
    """
    try:
        return render_chat(tokenizer, messages, **settings)
    except InputError as refused:
        first = refused
    for bent in (_merged(messages), _merged(_without_system(messages))):
        try:
            return render_chat(tokenizer, bent, **settings)
        except InputError:
            continue
    raise first


def _merged(messages: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in map(_with_short_ids, messages):
        last = merged[-1] if merged else {}
        role = message.get("role")
        if role in ("system", "user", "assistant") and role == last.get("role") and not last.get("tool_calls"):
            merged[-1] = {**last, **message, "content": _joined(last, message)}
        else:
            merged.append(message)
    return merged


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system: list[Any] = []
    for message in messages:
        if message.get("role") == "system":
            system += [_BETWEEN] * bool(system) + _parts(message)
    others = [message for message in messages if message.get("role") != "system"]
    place = next((n for n, message in enumerate(others) if message.get("role") == "user"), None)
    first = {"role": "user", "content": system}
    if place is None:
        return [first, *others] if system else others
    if system:
        others[place] = {**others[place], "content": _joined(first, others[place])}
    return others


def _with_short_ids(message: Message) -> Message:
    changed = dict(message)
    if message.get("tool_call_id"):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "id": _short(call["id"])} if call.get("id") else call for call in message["tool_calls"]
        ]
    return changed


def _short(name: Any) -> Any:
    if not isinstance(name, str) or (len(name) == _ID_CHARACTERS and name.isalnum()):
        return name
    return base64.b32encode(hashlib.sha256(name.encode()).digest()).decode()[:_ID_CHARACTERS].lower()


def _joined(first: Message, second: Message) -> list[Any]:
    one, other = _parts(first), _parts(second)
    return [*one, _BETWEEN, *other] if one and other else [*one, *other]


def _parts(message: Message) -> list[Any]:
    content = message.get("content") or []
    return [content] if isinstance(content, str | GistMemory) else list(content)
