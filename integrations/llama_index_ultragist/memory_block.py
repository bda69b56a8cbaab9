"""Old turns of a conversation as memories: a block of LlamaIndex's `Memory`.

Is        a `BaseMemoryBlock`: turns that the queue ejects are compressed, one memory each, and come back as markers.
Flow      Memory (queue) -> [block] -> system or user message -> UltraGistLLM. Imports the front door only.
Change    what is written of a turn, which turns go first when room is short.
Not here  the queue and its limits -> llama_index.core.memory; compressing -> ultragist_rag.condense.
Holds     a turn is one memory; a marker is shown whole or not at all; sessions see their own turns only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, TextBlock, ToolCallBlock
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.utils import get_tokenizer
from pydantic import ConfigDict, Field

from ultragist_rag.components import EngineFields
from ultragist_rag.condense import CondensePolicy, condense
from ultragist_rag.requests import in_thread
from ultragist_rag.store import GistStore
from ultragist_rag.store.scope import current_scope

__all__ = ["GistMemoryBlock"]


class GistMemoryBlock(EngineFields, BaseMemoryBlock[list[ContentBlock]]):
    """Compresses the turns that leave a `Memory`, and shows their markers, oldest first.

    A turn is what a user said and all that followed. What stands in it cannot act as a marker: look-alikes are made
    harmless before it is compressed. The model that reads the prompt must be an `UltraGistLLM` on the same store.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = "earlier_turns"
    """Name of the block in the prompt."""

    priority: int = 1
    """0 keeps all turns whatever the limit of the `Memory` is; else the oldest make room."""

    store: GistStore = Field(exclude=True, repr=False)
    """Where memories are kept."""

    ratio: int | None = None
    """Raw tokens per gist token; None takes the ratio of the model's config."""

    tokenizer_fn: Callable[[str], list[Any]] = Field(default_factory=get_tokenizer, exclude=True, repr=False)
    """Counts what a marker takes; give the one that the `Memory` has, best `slot_tokenizer(llm)`."""

    turns: dict[str, list[str]] = Field(default_factory=dict)
    """Markers of the turns of each session, oldest first; save them to go on later."""

    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str = "", **block_kwargs: Any
    ) -> list[ContentBlock]:
        markers = self.turns.get(session_id, [])
        scope = current_scope()
        if scope is not None:
            for marker in markers:
                scope.add(marker)
        return [TextBlock(text=marker) for marker in markers]

    async def _aput(self, messages: list[ChatMessage]) -> None:
        texts: dict[str, list[str]] = {}
        for session, turn in _turns(messages):
            if text := "\n".join(filter(None, map(_written, turn))):
                texts.setdefault(session, []).append(text)
        if not texts:
            return
        flat = [text for several in texts.values() for text in several]
        policy = CondensePolicy(ratio=self.ratio)
        made = iter(await in_thread(lambda _: condense(self._get_engine(), self.store, flat, policy=policy)))
        for session, several in texts.items():
            self.turns.setdefault(session, []).extend(next(made).text for _ in several)

    async def atruncate(self, content: list[ContentBlock], tokens_to_truncate: int) -> list[ContentBlock] | None:
        """Let the oldest turns go until enough room is made; markers are never cut.

        Args:
            content: What the block showed.
            tokens_to_truncate: How much room is wanted, as `tokenizer_fn` counts.

        Returns:
            The newest turns, or None if none can stay.
        """
        kept = list(content)
        while kept and tokens_to_truncate > 0:
            oldest = kept.pop(0)
            tokens_to_truncate -= len(self.tokenizer_fn(oldest.text)) if isinstance(oldest, TextBlock) else 0
        return kept or None


def _turns(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, list[ChatMessage]]]:
    """Cut messages into turns, each with its session: a user begins one."""
    turn: list[ChatMessage] = []
    for message in messages:
        if turn and (message.role == "user" or _session(message) != _session(turn[0])):
            yield _session(turn[0]), turn
            turn = []
        turn.append(message)
    if turn:
        yield _session(turn[0]), turn


def _session(message: ChatMessage) -> str:
    return str(message.additional_kwargs.get("session_id", ""))


def _written(message: ChatMessage) -> str:
    """Write a message as a line that says who spoke."""
    said = [block.text for block in message.blocks if isinstance(block, TextBlock)]
    said += [
        json.dumps({"name": block.tool_name, "arguments": block.tool_kwargs}, default=str)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    text = "\n".join(part for part in said if part.strip())
    return f"{message.role.value}: {text}" if text else ""
