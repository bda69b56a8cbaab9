"""Markers back to texts, for whatever cannot read memories: other models, evaluators, logs.

Is        `expand_markers` over texts, prompts, messages and documents.
Flow      store -> [expand] -> models that are not ours.
Change    which values it goes into.
Not here  what may be read -> ultragist_rag.store: the rules are those of `GistStore.resolve_all`.
Holds     the type of the value stays; each document stands once in a prompt, as its memory would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from ultragist_rag import GistNotFoundError, GistStore, InputError
from ultragist_rag.store import neutralise, parse_marker, to_marker
from ultragist_rag.store.resolving import cut

__all__ = ["expand_markers"]

Value = TypeVar("Value")


def expand_markers(value: Value, store: GistStore, *, unknown: Literal["error", "text"] = "error") -> Value:
    """Replace markers, and content blocks that stand for memories, by the texts that were compressed.

    Put it in front of a model that is not ours:
    `llm.with_fallbacks([RunnableLambda(partial(expand_markers, store=store)) | other_llm])`.

    Args:
        value: A text, a prompt value, a message, a document, or a list of these. It is not changed.
        store: Where the texts are. It must have kept them (`keep_source`).
        unknown: What becomes of a marker that the store has no text for: an error, or the plain text that it is.

    Returns:
        The same kind of value. In one prompt (a text, a prompt value, a list of messages), a text stands at the first
        place of its marker only; every document of a list is expanded by itself.

    Raises:
        GistNotFoundError: If the store has no text for a marker.
        InputError: If a marker is cut, or the value is of another kind.
    """
    return _expand(value, lambda: _Prompt(store, unknown), None)  # type: ignore[no-any-return]


class _Prompt:
    """The markers of one prompt."""

    def __init__(self, store: GistStore, unknown: Literal["error", "text"]) -> None:
        self._store = store
        self._is_known = self._has_text if unknown == "text" else None
        self._seen: set[str] = set()

    def text(self, text: str) -> str:
        """Return a text with the texts of its markers."""
        (parts,) = cut([text], self._is_known)
        # Once more in the end: texts that meet could make up a marker.
        return neutralise("".join(part if isinstance(part, str) else self.source(part.name) for part in parts))

    def source(self, name: str) -> str:
        """Return the text of an id, the first time."""
        if name in self._seen:
            return ""
        self._seen.add(name)
        return neutralise(self._store.source(name).text)

    def _has_text(self, name: str) -> bool:
        try:
            return bool(self._store.source(name).text)
        except GistNotFoundError:
            return False


def _expand(value: Any, begin: Callable[[], _Prompt], prompt: _Prompt | None) -> Any:
    """Expand a value as a part of a prompt, or as one of its own."""
    prompt = prompt or begin()
    if isinstance(value, str):
        return prompt.text(value)
    if isinstance(value, StringPromptValue):
        return value.model_copy(update={"text": prompt.text(value.text)})
    if isinstance(value, ChatPromptValue):
        return value.model_copy(update={"messages": _expand(value.messages, begin, prompt)})
    if isinstance(value, BaseMessage):
        return value.model_copy(update={"content": _content(value, prompt)})
    if isinstance(value, Document):
        return value.model_copy(update={"page_content": begin().text(value.page_content)})
    if isinstance(value, list | tuple):
        return type(value)(_expand(item, begin, prompt) for item in value)
    raise InputError(
        f"there are no markers to look for in a {type(value).__name__}: pass a text, a prompt value, messages or "
        "documents."
    )


def _content(message: BaseMessage, prompt: _Prompt) -> str | list[str | dict[Any, Any]]:
    if isinstance(message.content, str):
        return prompt.text(message.content)
    return [_block(block, prompt, trusted=not isinstance(message, ToolMessage)) for block in message.content]


def _block(block: str | dict[Any, Any], prompt: _Prompt, *, trusted: bool) -> str | dict[Any, Any]:
    if isinstance(block, str):
        return prompt.text(block)
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        block = dict(block["value"])
    if block.get("type") == "text":
        return {**block, "text": prompt.text(block["text"])}
    if block.get("type") != "ultragist":
        return block
    name = parse_marker(str(block.get("id")))
    if name is None:
        raise InputError(
            f"an ultragist block has the id {block.get('id')!r}, which is no id: take what the store gave."
        )
    # What a tool returns was written by strangers: its blocks count no more than markers in a text.
    return {"type": "text", "text": prompt.source(name) if trusted else prompt.text(to_marker(name))}
