"""Read prompts with memories and answer them: what the components of both frameworks have in common.

Is        `Reader`: markers become memories, conversations become prompts, prompts wait their turn and are answered.
Flow      store, memory, requests -> [reader] -> components of both frameworks.
Change    how memories get into a prompt, what an answer or a stream tells about itself.
Not here  the frameworks' own messages and results -> integrations; templates -> memory/chat.py, memory/roles.py.
Holds     a marker is read or refused, or stays plain text; each memory stands once in a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import ContextOverflowError, GistNotFoundError, InputError
from ultragist_rag.memory.attribution import SourceKind, check_sources
from ultragist_rag.memory.decoding import Decoding, end_tokens
from ultragist_rag.memory.generate import Answer, answer, askable
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Piece
from ultragist_rag.memory.prompt import count_prompt
from ultragist_rag.memory.roles import render_fitting
from ultragist_rag.memory.stream import TextStream, decode_into
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.requests import turn
from ultragist_rag.store import GistStore, parse_marker, to_marker
from ultragist_rag.store.fallback import PromptPieces, SourceText
from ultragist_rag.store.resolving import cut, put_in_place

__all__ = ["Answer", "AnswerStream", "MemoryRef", "Piece", "PromptPieces", "Reader"]

Cancelled = Callable[[], bool] | None
Sources = SourceKind | None
Unknown = Literal["error", "text"]

_USES_TOOLS = re.compile(r"\btools\b")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MemoryRef:
    """A place in a message where a stored memory stands; unlike a marker it cannot be written by any text.

    Attributes:
        id: A marker or id.
    """

    id: str


class AnswerStream(TextStream):
    """An answer as it is decoded; when it has ended it says how.

    Its thread waits for its turn, decodes and gives the turn back, so neither a slow reader nor a dropped stream keeps
    it from others.

    Attributes:
        n_slots: Memory slots of the prompt.
        n_prompt_tokens: Tokens of the prompt.
        n_from_text: Documents of the prompt that are read from their text instead of their memory.
        n_tokens: Tokens of the answer so far; at the end as many as `Answer.ids` has.
        finish: Why it ended: `end`, `stop`, `length` or `cancelled`; None before.
        sources: As `Answer.sources`, when it has ended.
    """

    def __init__(self, counts: tuple[int, int], decoding: Decoding, *stream: Any) -> None:
        """Prepare a stream; `Reader.stream` does."""
        super().__init__(*stream)
        self.n_slots, self.n_prompt_tokens = counts
        self.n_from_text = 0
        self.n_tokens = 0
        self.finish: Literal["end", "stop", "length", "cancelled"] | None = None
        self._max_tokens = decoding.max_new_tokens
        self._n_shown = 0
        self._lengths = [0]  # characters after each token

    def close(self) -> None:
        """End decoding within one token; the stream is over."""
        self.finish = self.finish or "cancelled"
        super().close()

    def __enter__(self) -> AnswerStream:
        """Give the stream itself."""
        return self

    def _show(self, token: int | None) -> Any:
        shown = super()._show(token)
        self._n_shown += len(shown)
        self.n_tokens += token is not None
        if self._cutter.stopped:
            self.finish = "stop"
            self.n_tokens = self._lengths.index(max(length for length in self._lengths if length <= self._n_shown))
        elif token in self._ends:
            self.finish = "end"
        elif token is None:
            self.finish = self.finish or ("length" if self.n_tokens == self._max_tokens else "cancelled")
        self._lengths.append(self._n_shown + self._cutter.n_held)
        return shown


class Reader:
    """An engine and a store, as chat models and LLMs use them. Threads may share one; making one costs nothing."""

    def __init__(
        self,
        engine: UltraGist,
        store: GistStore | None,
        *,
        max_slots: int | None = None,
        unknown_markers: Unknown = "error",
        max_waiting: int = 64,
        timeout: float | None = None,
    ) -> None:
        """Read with an engine from a store.

        Args:
            engine: The engine; it needs a tokenizer.
            store: Where the memories are; None for prompts without memories.
            max_slots: Memory slots that one prompt may have.
            unknown_markers: `text` leaves markers that are not of the store's namespace as plain text; `error` refuses.
            max_waiting: Requests that may wait for the engine.
            timeout: Seconds that a request may take, waiting included.

        Raises:
            InputError: If the engine has no tokenizer.
        """
        if engine.tokenizer is None:
            raise InputError("the engine has no tokenizer: load it from a folder that has one.")
        self.engine = engine
        self.store = store
        self.max_slots = max_slots
        self.unknown_markers = unknown_markers
        self._queue: dict[str, Any] = {"max_waiting": max_waiting, "timeout": timeout}

    @property
    def max_positions(self) -> int:
        """Positions that a prompt may use, memory slots and new tokens included."""
        return self.engine.max_positions

    @property
    def has_tools(self) -> bool:
        """Whether the chat template of the tokenizer can show tools."""
        if not self.engine.tokenizer.chat_template:
            return False
        template: str = self.engine.tokenizer.get_chat_template(tools=[{}])
        return _USES_TOOLS.search(_COMMENT.sub("", template)) is not None

    def token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without any special token; a marker counts as the text that it is."""
        ids: list[int] = TextCodec.of(self.engine.tokenizer).encode(text).tolist()
        return ids

    def pieces(self, prompt: str) -> PromptPieces:
        """Cut a prompt at its markers and put the memories in their places, each once.

        Args:
            prompt: A text with markers.

        Returns:
            Texts and memories in reading order; `n_from_text` says how many documents the calibration of the engine
            made texts of.

        Raises:
            GistNotFoundError: If a marker is not of the store's namespace, for whatever reason.
            ContextOverflowError: If the memories have more than `max_slots` slots.
            InputError: If there is a part of a marker.
        """
        (shown,) = self._resolve([prompt])
        return PromptPieces.of(shown, shown)

    def chat_pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template: Any,
    ) -> PromptPieces:
        """Render a conversation with the chat template; markers in all its texts become memories, each once.

        If the template refuses the messages or leaves one out, neighbours of one role are merged, and then the system
        text is put in front of the first user message.

        Args:
            messages: Each with `role` (system, user, assistant, tool) and `content`: a text, or a list of texts,
                `MemoryRef`s and memories. An assistant's may have `tool_calls`, a list of `{"name", "arguments",
                "id"}`; a tool's `tool_call_id`; any a `name`.
            tools: Descriptions of tools (JSON schema) for the template; trusted.
            template: Further settings of the template; trusted.

        Returns:
            Token ids of shape (tokens,) and memories in reading order, and `n_from_text` as for `pieces`.

        Raises:
            GistNotFoundError: If a marker or `MemoryRef` is not of the store's namespace, for whatever reason.
            ContextOverflowError: If the memories have more than `max_slots` slots.
            InputError: If the template takes the messages in no form, or has no place for tools.
        """
        calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        if (tools or calls) and not self.has_tools:
            raise InputError(
                "the chat template of this model has no place for tools: use a model that was trained to call tools, "
                "or leave out tools and their messages."
            )
        shown = self._with_memories(messages)
        spans = [span for message in shown for span in message["content"]]
        return PromptPieces.of(render_fitting(self.engine.tokenizer, shown, tools=tools, **template), spans)

    def answer(
        self, batch: Sequence[Sequence[Piece]], *, cancelled: Cancelled = None, sources: Sources = None, **decoding: Any
    ) -> list[Answer]:
        """Answer prompts in one batch, when it is their turn.

        Args:
            batch: Prompts of texts, ids and memories.
            cancelled: Asked after every token and while waiting; True ends the answers there.
            sources: `attention` or `leave-one-out`: score which memories each answer was read from.
            decoding: Settings of `memory.decoding.Decoding`, such as max_new_tokens, do_sample, stop, seed.

        Returns:
            One answer per prompt.

        Raises:
            InputError: If a prompt or a setting does not fit.
            ContextOverflowError: If a prompt and its answer need more positions than there are.
            QueueFullError: If too many requests wait.
            RequestTimeoutError: If the time was over before the answers were complete.
        """
        settings = _one_each(decoding)
        prompts = askable(self.engine, batch, settings)
        with turn(self.engine, cancelled=cancelled, **self._queue) as request:
            if request.cancelled():
                request.check()
                nothing = torch.empty(0, dtype=torch.long)
                return [Answer("", nothing, "cancelled", *count_prompt(prompt)) for prompt in prompts]
            several = answer(self.engine, prompts, replace(settings, cancelled=request.cancelled), sources=sources)
        texts = [getattr(pieces, "n_from_text", 0) for pieces in batch]
        answers = [replace(one, n_from_text=n) for (one,), n in zip(several, texts, strict=True)]
        if any(one.finish == "cancelled" for one in answers):
            request.check()
        return answers

    def stream(
        self, pieces: Sequence[Piece], *, cancelled: Cancelled = None, sources: Sources = None, **decoding: Any
    ) -> AnswerStream:
        """Answer a prompt bit by bit. It waits for its turn when the first piece is asked for.

        Args:
            pieces: One prompt of texts, ids and memories.
            cancelled: Asked after every token and while waiting; True ends the answer there.
            sources: As for `answer`; the stream's own `sources` has the scores when it has ended.
            decoding: Settings of `memory.decoding.Decoding`.

        Returns:
            The stream. Reading it raises QueueFullError and RequestTimeoutError as `answer` does.

        Raises:
            InputError: If the prompt or a setting does not fit.
            ContextOverflowError: If prompt and answer need more positions than there are.
        """
        engine, settings, waiting = self.engine, _one_each(decoding), self._queue
        if settings.num_beams > 1:
            raise InputError("a stream cannot search with beams: set num_beams=1, or do not stream.")
        check_sources(sources)
        prompts = askable(engine, [pieces], settings)

        def work(feed: Any) -> None:
            with turn(engine, cancelled=feed.cancelled_or(cancelled), **waiting) as request:
                if not request.cancelled():
                    decode_into(feed, engine, prompts[0], replace(settings, cancelled=request.cancelled), sources)
                request.check()

        ends = end_tokens(engine.model, engine.tokenizer, settings)
        codec = TextCodec.of(engine.tokenizer)
        stream = AnswerStream(count_prompt(prompts[0]), settings, work, ends, codec, settings.stop)
        stream.n_from_text = getattr(pieces, "n_from_text", 0)
        return stream

    def _resolve(self, texts: Sequence[str]) -> list[list[str | GistMemory]]:
        if self.store is not None:
            limits: dict[str, Any] = {"max_slots": self.max_slots, "unknown": self.unknown_markers}
            return self.store.resolve_all(self.engine, texts, **limits)
        rows = cut(texts, None if self.unknown_markers == "error" else lambda _: False)
        if not all(isinstance(part, str) for row in rows for part in row):
            raise GistNotFoundError(
                "there is a marker in the prompt, but no store to look it up: give the store that made it."
            )
        return put_in_place(rows, {})

    def _with_memories(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Copy messages with memories in the places of markers and references."""
        contents = [_parts(message.get("content")) for message in messages]
        parts = [part for content in contents for part in content]
        # All together, so that a memory that stands in several messages is loaded and counted once.
        texts = [_text_of(part) for part in parts if isinstance(part, str | MemoryRef)]
        resolved = iter(self._resolve(texts))
        seen: dict[int, GistMemory | SourceText] = {}
        copies = []
        for message, content in zip(messages, contents, strict=True):
            spans: list[Any] = []
            for part in content:
                found: list[Any] = next(resolved) if isinstance(part, str | MemoryRef) else [part]
                if isinstance(part, MemoryRef) and any(type(span) is str for span in found):
                    found = [self._get(part.id)]  # not a marker that texts may use
                spans += [span for span in found if id(span) not in seen]
                seen.update((id(span), span) for span in found if isinstance(span, GistMemory | SourceText))
            copies.append({**message, "content": spans})
        n_slots = sum(memory.slots for memory in seen.values())
        if self.max_slots is not None and n_slots > self.max_slots:
            raise ContextOverflowError(
                f"the memories of the prompt have {n_slots} slots, but max_slots is {self.max_slots}: use fewer "
                "documents or a higher ratio."
            )
        return copies

    def _get(self, name: str) -> GistMemory | SourceText:
        if self.store is None:
            raise GistNotFoundError("a message refers to a memory, but there is no store: give the store that made it.")
        return self.store.shown(name, self.engine)


def _parts(content: Any) -> list[Any]:
    if content is None:
        return []
    return [content] if isinstance(content, str | MemoryRef | GistMemory) else list(content)


def _text_of(part: str | MemoryRef) -> str:
    if isinstance(part, str):
        return part
    name = parse_marker(part.id)
    return to_marker(name) if name else "no marker"


def _one_each(decoding: Mapping[str, Any]) -> Decoding:
    settings = Decoding.of(decoding)
    if settings.num_return_sequences > 1:
        raise InputError(f"num_return_sequences is {settings.num_return_sequences}: ask once for each answer.")
    return settings
