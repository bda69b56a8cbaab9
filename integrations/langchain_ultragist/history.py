"""Old turns of a conversation as memories, recent messages as they are.

Is        an agent middleware in the manner of LangChain's `SummarizationMiddleware`, without a summary to write.
Flow      checkpointer -> request -> [history] -> ChatUltraGist. What the checkpointer holds is never changed.
Change    how old turns are shown to the model.
Not here  where to cut -> turns.py; when -> limits.py; ratios and what is compressed -> ultragist_rag.session.
Holds     what stands for old turns never takes more than `slots`; a call and its result are on one side of the cut.
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
from ultragist_rag import GistStore, InputError
from ultragist_rag.components import ReadFields
from ultragist_rag.condense import CondensePolicy
from ultragist_rag.session import ThreadSessions
from ultragist_rag.store import neutralise, parse_marker

__all__ = ["UltraGistHistoryMiddleware"]

_TURNS = "Earlier in this conversation:\n"
_STEPS = "\n\nDone so far:\n"
_PER_DOCUMENT_SLOT = 4
"""For so many slots of old turns there may be one more of documents that they mention."""

_log = logging.getLogger(__name__)


class UltraGistHistoryMiddleware(AgentMiddleware[AgentState[ResponseT], ContextT, ResponseT]):
    """Shows a `ChatUltraGist` the memories of old turns in place of the turns.

    Each finished turn (a user's message and everything up to the next one) is one memory, kept in the store of the
    model. If the running turn alone is longer than `keep`, its old steps (a message of the model and the results of its
    tool calls) are one memory each; the user's message of that turn stays as it is. The state of the agent, and so the
    checkpointer, keeps every message.

    All of them together never take more than `slots`: as the conversation grows, the oldest are compressed again, to
    higher ratios, and at last are not shown any more. A session of each thread sees to that (`GistSession`); it is made
    of the messages again when it is not at hand.

    Markers in old turns are shown behind the memory of their turn and read under the same rules as before; the newest
    ones, as far as they take a quarter of `slots` besides. System messages stay. A model that is not ours gets the
    request unchanged. Put the middleware last in the list, so that one that exchanges the model comes before.

    Example:
        >>> UltraGistHistoryMiddleware(trigger=("tokens", 4000), keep=("messages", 10)).keep
        ('messages', 10)
    """

    def __init__(
        self,
        *,
        trigger: Trigger | None = None,
        keep: ContextSize = ("messages", 20),
        slots: int | None = None,
        ratio: int | None = None,
        min_tokens: int = 0,
    ) -> None:
        """Set up; nothing is loaded.

        Args:
            trigger: From which size of a conversation on: `("messages", n)`, `("tokens", n)` in tokens of the model, or
                `("fraction", f)` of what the model can read; a list of which one is enough; a mapping of which all must
                be reached. None for any conversation longer than `keep`.
            keep: How much is shown as it is, counted from the end. The cut moves back to the start of a turn or step.
            slots: Memory slots that may stand for old turns; None for 2048, or half of the model's positions if that
                is less.
            ratio: Raw tokens per gist token of the newest old turns; None for the ratio of the model's config.
            min_tokens: Turns with fewer tokens stay text, beside the slots.

        Raises:
            InputError: If a size cannot be.
        """
        super().__init__()
        self.keep = check_size(keep, "keep")
        self.trigger = check_trigger(trigger)
        self.min_tokens = CondensePolicy(min_tokens=min_tokens).min_tokens
        self._sessions = ThreadSessions(slots=slots, ratio=ratio)

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
        shown = self._shown(request, parts)
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

    def _shown(self, request: ModelRequest[ContextT], parts: Cut) -> list[list[dict[str, Any]]]:
        """Return the content blocks that stand for each old turn or step; none for one that there is no room for."""
        model: Any = request.model
        old = [*parts.turns, *parts.steps]
        texts = [neutralise(write(part)) for part in old]
        least = self.min_tokens
        places = [n for n, text in enumerate(texts) if not least or model.get_num_tokens(text) >= least]
        session = self._sessions.get(model._get_engine(), model.store, _thread(request) or texts[0])
        shown = [[_text_block(text + "\n")] for text in texts]
        for place, markers in zip(places, session.markers_of([texts[place] for place in places]), strict=True):
            shown[place] = [{"type": "ultragist", "id": parse_marker(marker)} for marker in markers]
        said = [part if shown[n] else [] for n, part in enumerate(old)]
        documents = _documents(model.store, said, parts.kept, session.slots // _PER_DOCUMENT_SLOT)
        return [[*memories, *more] for memories, more in zip(shown, documents, strict=True)]


def _documents(
    store: GistStore, old: Sequence[Sequence[AnyMessage]], kept: Sequence[AnyMessage], room: int
) -> list[list[dict[str, Any]]]:
    """Return blocks for the documents that old turns mention, the newest first until `room` slots are taken."""
    shown = set(mentioned(kept))  # a memory stands in a prompt once: where its document was found last
    rows: list[list[dict[str, Any]]] = []
    for part in reversed(old):
        rows.append([])
        for name, block in mentioned(part).items():
            slots = store.get(name).slots if name not in shown and name in store else 0
            if name not in shown and slots <= room:
                rows[-1].append(block)
                room -= slots
            shown.add(name)
    return rows[::-1]


def _thread(request: ModelRequest[ContextT]) -> str | None:
    """Return the name of the conversation, if a checkpointer keeps it."""
    return getattr(getattr(request.runtime, "execution_info", None), "thread_id", None)


def _max_input_tokens(model: Any) -> int:
    profile = model.profile or {}
    return int(profile.get("max_input_tokens") or model._reader().max_positions)


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _blocks(content: str | list[Any]) -> list[Any]:
    return [_text_block(content)] if isinstance(content, str) else list(content)


def _joined(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [block for part in parts for block in part]
