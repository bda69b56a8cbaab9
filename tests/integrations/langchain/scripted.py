"""Let a model say a given text; put a stream together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_ultragist import ChatUltraGist


def says(chat: ChatUltraGist, text: str) -> Callable[[int, Any], list[int]]:
    """Return a setting of decoding that lets the model say a text."""
    assert chat.engine is not None
    ids = [*chat.get_token_ids(text), chat.engine.tokenizer.eos_token_id]
    starts: list[int] = []

    def allowed(_: int, input_ids: Any) -> list[int]:
        starts.append(len(input_ids))
        return [ids[min(len(input_ids) - starts[0], len(ids) - 1)]]

    return allowed


def streamed(model: Any, messages: Any, **settings: Any) -> tuple[list[Any], Any]:
    """Return the chunks of a stream and their sum."""
    chunks = list(model.stream(messages, **settings))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return chunks, whole
