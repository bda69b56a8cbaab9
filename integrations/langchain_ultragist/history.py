"""Old turns of a conversation as memories, recent messages as they are.

Is        an agent middleware in the manner of LangChain's `SummarizationMiddleware`, without a summary to write.
Flow      checkpointer -> request -> [history] -> ChatUltraGist. What the checkpointer holds is never changed.
Change    how old turns are shown to the model.
Not here  where to cut -> turns.py; when -> limits.py; compressing and finding again -> ultragist_rag.condense.
Holds     a turn that was compressed is not compressed again; a call and its result are on one side of the cut.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ContextT,
    ModelCallResult,
    ModelRequest,
    ModelResponse,
    ResponseT,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import run_in_executor

from langchain_ultragist.limits import ContextSize, Trigger, check_size, check_trigger, first_kept, is_reached
from langchain_ultragist.turns import Cut, cut, mentioned, write
from ultragist_rag import GistStore, InputError, UltraGist
from ultragist_rag.components import ReadFields
from ultragist_rag.condense import Condensed, CondensePolicy, condense
from ultragist_rag.store import parse_marker

__all__ = ["UltraGistHistoryMiddleware"]

_TURNS = "Earlier in this conversation:\n"
_STEPS = "\n\nDone so far:\n"

_log = logging.getLogger(__name__)


class UltraGistHistoryMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Shows a `ChatUltraGist` the memories of old turns in place of the turns.

    Each finished turn (a user's message and everything up to the next one) is one memory, kept in the store of the
    model, so that it is compressed once. If the running turn alone is longer than `keep`, its old steps (a message of
    the model and the results of its tool calls) are one memory each; the user's message of that turn stays as it is.
    The state of the agent, and so the checkpointer, keeps every message.

    Markers in old turns are shown behind the memory of their turn and read under the same rules as before. System
    messages stay. A model that is not ours gets the request unchanged. Put the middleware last in the list, so that
    one that exchanges the model comes before.

    Example:
        >>> UltraGistHistoryMiddleware(trigger=("tokens", 4000), keep=("messages", 10)).keep
        ('messages', 10)
    """

    def __init__(
        self,
        *,
        trigger: Trigger | None = None,
        keep: ContextSize = ("messages", 20),
        ratio: int | None = None,
        min_tokens: int = 0,
    ) -> None:
        """Set up; nothing is loaded.

        Args:
            trigger: From which size of a conversation on: `("messages", n)`, `("tokens", n)` in tokens of the model, or
                `("fraction", f)` of what the model can read; a list of which one is enough; a mapping of which all must
                be reached. None for any conversation longer than `keep`.
            keep: How much is shown as it is, counted from the end. The cut moves back to the start of a turn or step.
            ratio: Raw tokens per gist token; None for the ratio of the model's config.
            min_tokens: Turns with fewer tokens stay text.

        Raises:
            InputError: If a size cannot be.
        """
        super().__init__()
        self.keep = check_size(keep, "keep")
        self.trigger = check_trigger(trigger)
        self.policy = CondensePolicy(ratio=ratio, min_tokens=min_tokens)

    def wrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], ModelResponse[ResponseT]],
    ) -> ModelCallResult[ResponseT]:
        """Shorten the messages of a request, then let it be answered.

        Args:
            request: What the model is to be asked.
            handler: Asks it.

        Returns:
            The model's answer.
        """
        return handler(self.shorten(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[ContextT],
        handler: Callable[[ModelRequest[ContextT]], Awaitable[ModelResponse[ResponseT]]],
    ) -> ModelCallResult[ResponseT]:
        """Shorten the messages of a request in a thread, then let it be answered.

        Args:
            request: What the model is to be asked.
            handler: Asks it.

        Returns:
            The model's answer.
        """
        return await handler(await run_in_executor(None, self.shorten, request))

    def shorten(self, request: ModelRequest[ContextT]) -> ModelRequest[ContextT]:
        """Return a request with memories in place of old turns.

        Args:
            request: It is not changed.

        Returns:
            A new request, or the same one if there is nothing to shorten or the model is not ours.

        Raises:
            InputError: If the model is ours and has no store.
        """
        model, messages = request.model, request.messages
        if not isinstance(model, ReadFields):
            _log.debug("messages are left alone: %s is not ours", type(model).__name__)
            return request
        place = self._place(model, messages)
        parts = cut(messages, place)
        if not parts.turns and not parts.steps:
            return request
        if model.store is None:
            raise InputError(
                "the chat model has no store, so that old turns cannot be kept: make it with ChatUltraGist(store=...)."
            )
        shown = self._condense(model._get_engine(), model.store, parts)
        turns, steps = _joined(shown[: len(parts.turns)]), _joined(shown[len(parts.turns) :])
        head: AnyMessage | None = parts.question
        rest = parts.kept
        if head is None and isinstance(rest[0], HumanMessage):
            head, rest = rest[0], rest[1:]
        content = _blocks(head.content) if head else []
        if turns:
            content = [_text_block(_TURNS), *turns, *([_text_block("\n\n")] if content else []), *content]
        if steps:
            content += [_text_block(_STEPS), *steps]
        front = head.model_copy(update={"content": content}) if head else HumanMessage(content)
        return request.override(messages=[*parts.instructions, front, *rest])

    def _place(self, model: BaseChatModel, messages: Sequence[AnyMessage]) -> int:
        counts: list[int] = []

        def tokens() -> list[int]:
            if not counts:
                counts.extend(model.get_num_tokens(write([message])) for message in messages)
            return counts

        def limit() -> int:
            return _max_input_tokens(model)

        if not is_reached(self.trigger, tokens, len(messages), limit):
            return 0
        return first_kept(self.keep, tokens, len(messages), limit)

    def _condense(self, engine: UltraGist, store: GistStore, parts: Cut) -> list[list[dict[str, Any]]]:
        """Return the content blocks that stand for each old turn or step."""
        old = [*parts.turns, *parts.steps]
        condensed = condense(engine, store, [write(part) for part in old], policy=self.policy)
        # A memory stands in a prompt once: that of a document found anew belongs where it was found last.
        shown = set(mentioned(parts.kept))
        return [
            [_block(memory), *(block for name, block in mentioned(part).items() if name not in shown)]
            for memory, part in zip(condensed, old, strict=True)
        ]


def _max_input_tokens(model: Any) -> int:
    profile = model.profile or {}
    return int(profile.get("max_input_tokens") or model._reader().max_positions)


def _block(condensed: Condensed) -> dict[str, Any]:
    if condensed.marker is None:
        return _text_block(condensed.text + "\n")
    return {"type": "ultragist", "id": parse_marker(condensed.marker)}


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _blocks(content: str | list[Any]) -> list[Any]:
    return [_text_block(content)] if isinstance(content, str) else list(content)


def _joined(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [block for part in parts for block in part]
