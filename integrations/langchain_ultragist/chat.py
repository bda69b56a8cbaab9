"""A LangChain chat model that reads the memories behind markers and content blocks.

Is        a `BaseChatModel`: chat template, streaming, tools, structured output, usage metadata.
Flow      messages -> messages.py -> ultragist_rag.reader -> [chat] -> tool_text.py -> AI message.
Change    what an answer says about itself, what the model tells about its abilities.
Not here  settings -> ultragist_rag.components; queue, templates -> ultragist_rag.reader; caches -> answering.py.
Holds     nothing is loaded when the object is made; a stream shows what the whole answer shows.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_ultragist.answering import AnsweringModel
from langchain_ultragist.messages import texts_of, to_chat, usage_of
from langchain_ultragist.tool_text import PlainText, ToolText, choose, opening_of
from ultragist_rag.errors import InputError
from ultragist_rag.reader import Reader
from ultragist_rag.requests import in_thread, iterate

__all__ = ["ChatUltraGist"]

Cancelled = Callable[[], bool] | None

_IGNORED = frozenset({"stream", "strict", "parallel_tool_calls"})
"""Settings of calls that other providers know and that change nothing here."""


class ChatUltraGist(AnsweringModel, BaseChatModel):
    """Answers conversations in which markers and content blocks stand for compressed documents.

    A marker may stand in the text of any message; a block is `{"type": "ultragist", "id": marker}`. Both are resolved
    through `store`, and so within its namespace only; what is unknown there raises `GistNotFoundError`.

    Example:
        >>> chat = ChatUltraGist(model="bundled", max_tokens=20)  # loads nothing yet
        >>> chat.invoke("What is a gist?").usage_metadata  # doctest: +SKIP
    """

    streaming: bool = False
    """Whether `invoke` streams, so that callbacks see the answer as it comes."""

    @property
    def _llm_type(self) -> str:
        return "ultragist-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing("chat", stop, kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        limit = self._window()
        if limit is None:
            return None
        profile = ModelProfile(
            max_input_tokens=max(1, limit - self.max_tokens),
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            structured_output=False,
        )
        if self.engine is not None:
            profile["tool_calling"] = profile["tool_choice"] = self._reader().has_tools
        return profile

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Count what messages take in a prompt: tokens, template included, and slots of memories.

        Args:
            messages: Any part of a conversation. One that the template refuses is counted without the template.
            tools: Tools that would be bound.

        Returns:
            The number of tokens and slots.
        """
        reader, chat = self._reader(), to_chat(messages)
        shown = [convert_to_openai_tool(tool) for tool in tools or ()]
        try:
            pieces: Sequence[Any] = reader.chat_pieces(chat, tools=shown or None, add_generation_prompt=False)
        except InputError:
            pieces = [piece for text in texts_of(chat) for piece in reader.pieces(text)]
        counts = (len(reader.token_ids(piece)) if isinstance(piece, str) else _size(piece) for piece in pieces)
        return sum(counts)

    def batch(self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """Answer conversations, at most as many at a time as may wait; see `Runnable.batch`.

        Args:
            inputs: Conversations.
            config: One for all, or one for each.
            kwargs: Settings for the calls of the model.

        Returns:
            One answer per conversation, in order.
        """
        return super().batch(inputs, self._bounded(config, len(inputs)), **kwargs)

    async def abatch(self, inputs: list[LanguageModelInput], config: Any = None, **kwargs: Any) -> list[AIMessage]:
        """Do what `batch` does, without keeping the event loop busy.

        Args:
            inputs: Conversations.
            config: One for all, or one for each.
            kwargs: Settings for the calls of the model.

        Returns:
            As `batch`.
        """
        return await super().abatch(inputs, self._bounded(config, len(inputs)), **kwargs)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Show tools to the model; its calls come back as `tool_calls` of the AI message.

        A call that must be made is begun for the model, with the name of the tool where there is only one.

        Args:
            tools: Functions, pydantic classes, LangChain tools or descriptions of tools.
            tool_choice: None or `auto`: it may call; `none`: it cannot; True, `any` or `required`: it must call one; a
                name: it must call that one.
            kwargs: Settings for the calls of the model.

        Returns:
            The model with its tools.

        Raises:
            InputError: If the chat template of the model has no place for tools, or `tool_choice` names none of them.
        """
        self._check_tools(self._reader())
        shown = [convert_to_openai_tool(tool) for tool in tools]
        choose(shown, tool_choice)
        return self.bind(tools=shown, tool_choice=tool_choice, **kwargs)

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model = self._guarded(lambda: texts_of(to_chat(messages)), _decoding_of(kwargs))
        return super(ChatUltraGist, model)._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        texts = lambda: texts_of(to_chat(messages))  # noqa: E731
        model = await in_thread(lambda _: self._guarded(texts, _decoding_of(kwargs)))
        return await super(ChatUltraGist, model)._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(messages, stop, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await in_thread(lambda cancelled: self._answer(messages, stop, kwargs, cancelled))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self._chunks(messages, stop, kwargs)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = iterate(lambda cancelled: self._chunks(messages, stop, kwargs, cancelled))
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    def _answer(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], cancelled: Cancelled = None
    ) -> ChatResult:
        reader = self._reader()
        pieces, filtered = self._prompt(reader, messages, kwargs)
        (answer,) = reader.answer([pieces], cancelled=cancelled, **self._decoding(stop, _decoding_of(kwargs)))
        shown = filtered.push(answer.text)
        rest, calls, broken = filtered.finish()
        message = AIMessage(
            content=shown + rest,
            tool_calls=calls,
            invalid_tool_calls=broken,
            usage_metadata=usage_of(answer.n_prompt_tokens, answer.n_slots, len(answer.ids)),
            response_metadata=self._metadata(answer.finish)
            | self._marked(answer.n_from_text)
            | self._cited(pieces, answer.sources),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any], cancelled: Cancelled = None
    ) -> Iterator[ChatGenerationChunk]:
        reader = self._reader()
        pieces, filtered = self._prompt(reader, messages, kwargs)
        with reader.stream(pieces, cancelled=cancelled, **self._decoding(stop, _decoding_of(kwargs))) as stream:
            for text in stream:
                if shown := filtered.push(text):
                    yield ChatGenerationChunk(message=AIMessageChunk(content=shown))
            rest, calls, broken = filtered.finish()
            last = AIMessageChunk(
                content=rest,
                tool_call_chunks=[_call_chunk(call, number) for number, call in enumerate([*calls, *broken])],
                usage_metadata=usage_of(stream.n_prompt_tokens, stream.n_slots, stream.n_tokens),
                response_metadata=self._metadata(str(stream.finish))
                | self._marked(stream.n_from_text)
                | self._cited(pieces, stream.sources),
                chunk_position="last",
            )
        yield ChatGenerationChunk(message=last)

    def _bounded(self, config: Any, n_inputs: int) -> list[RunnableConfig]:
        configs = get_config_list(config, n_inputs)
        bound = max(1, self.max_waiting)
        return [{**one, "max_concurrency": min(one.get("max_concurrency") or bound, bound)} for one in configs]

    def _prompt(
        self, reader: Reader, messages: list[BaseMessage], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], ToolText | PlainText]:
        """Return the pieces of the prompt, and what the answer is to run through."""
        bound = [convert_to_openai_tool(tool) for tool in kwargs.get("tools") or ()]
        tools, is_forced = choose(bound, kwargs.get("tool_choice")) if bound else ([], False)
        if not tools:
            return reader.chat_pieces(to_chat(messages)), PlainText()
        self._check_tools(reader)
        pieces = reader.chat_pieces(to_chat(messages), tools=tools)
        if not is_forced:
            return pieces, ToolText()
        tokenizer = reader.engine.tokenizer
        opening = opening_of(tools, tokenizer.get_chat_template(tools=tools))
        pieces.append(torch.tensor(tokenizer(opening, add_special_tokens=False)["input_ids"]))
        return pieces, ToolText(opening)

    def _check_tools(self, reader: Reader) -> None:
        if not reader.has_tools:
            raise InputError(
                f"the chat template of {self._name} has no place for tools, so it can neither call them nor give "
                "structured output: use a model that was trained to call tools, or a prompt and an output parser."
            )

    def _metadata(self, finish: str) -> dict[str, Any]:
        return {"model_name": self._name, "finish_reason": finish}


def _decoding_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    ours = _IGNORED | {"tools", "tool_choice"}
    return {name: value for name, value in kwargs.items() if name not in ours}


def _call_chunk(call: Mapping[str, Any], number: int) -> Any:
    arguments = call["args"] if isinstance(call["args"], str) else json.dumps(call["args"], ensure_ascii=False)
    return tool_call_chunk(name=call["name"], args=arguments, id=call["id"], index=number)


def _size(piece: Any) -> int:
    return len(piece) if isinstance(piece, torch.Tensor) else int(piece.slots)
