"""Old turns of a conversation as memories: a block of LlamaIndex's `Memory`.

Is        a `BaseMemoryBlock`: turns that the queue ejects are compressed, and come back as markers, within `slots`.
Flow      Memory (queue) -> [block] -> system or user message -> UltraGistLLM. Imports the front door only.
Change    what is written of a turn, which turns go first when room is short.
Not here  the queue and its limits -> llama_index.core.memory; ratios of old turns -> ultragist_rag.session.
Holds     turns never take more than `slots`; a marker is shown whole or not at all; sessions see their own turns only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, TextBlock, ToolCallBlock
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.utils import get_tokenizer
from pydantic import ConfigDict, Field, PrivateAttr

from ultragist_rag.components import EngineFields
from ultragist_rag.condense import CondensePolicy, condense
from ultragist_rag.requests import in_thread
from ultragist_rag.session import ThreadSessions
from ultragist_rag.store import GistStore
from ultragist_rag.store.scope import current_scope

__all__ = ["GistMemoryBlock"]


class GistMemoryBlock(EngineFields, BaseMemoryBlock[list[ContentBlock]]):
    """Compresses the turns that leave a `Memory`, and shows their markers, oldest first.

    A turn is what a user said and all that followed. What stands in it cannot act as a marker: look-alikes are made
    harmless before it is compressed. The model that reads the prompt must be an `UltraGistLLM` on the same store.

    As a conversation grows, its oldest turns are compressed again, to higher ratios, and at last are not shown any
    more. A session sees to that (`GistSession`); it is made of the store's texts again when it is not at hand.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = "earlier_turns"
    """Name of the block in the prompt."""

    priority: int = 1
    """0 keeps all turns whatever the limit of the `Memory` is; else the oldest make room."""

    store: GistStore = Field(exclude=True, repr=False)
    """Where memories are kept."""

    slots: int | None = None
    """Memory slots that the turns of a session may take; None takes 2048, or half of the model's positions if less."""

    ratio: int | None = None
    """Raw tokens per gist token of the newest of them; None takes the ratio of the model's config."""

    tokenizer_fn: Callable[[str], list[Any]] = Field(default_factory=get_tokenizer, exclude=True, repr=False)
    """Counts what a marker takes; give the one that the `Memory` has, best `slot_tokenizer(llm)`."""

    turns: dict[str, list[str]] = Field(default_factory=dict)
    """Markers of the turns of each session as they were when they came, oldest first; save them to go on later."""

    _sessions: ThreadSessions = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the numbers; nothing is loaded."""
        super().model_post_init(context)
        self._sessions = ThreadSessions(slots=self.slots, ratio=self.ratio)

    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str = "", **block_kwargs: Any
    ) -> list[ContentBlock]:
        markers = await in_thread(lambda _: self._shown(session_id))
        scope = current_scope()
        if scope is not None:
            for marker in markers:
                scope.add(marker)
        return [TextBlock(text=marker) for marker in markers]

    def _shown(self, session_id: str) -> list[str]:
        """Return the markers that stand for the turns of a session now."""
        turns = self.turns.get(session_id, [])
        if not turns:
            return []
        records = [self.store.find_source(marker) for marker in turns]
        # Of a turn whose text the store does not have there is only the memory that was made first.
        fixed = [marker for marker, record in zip(turns, records, strict=True) if record is None]
        session = self._sessions.get(self._get_engine(), self.store, session_id)
        rows = session.markers_of([record.text for record in records if record is not None])
        return [*fixed, *(marker for row in rows for marker in row)]

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
