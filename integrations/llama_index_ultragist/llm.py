"""A LlamaIndex LLM that reads the memories behind the markers of a prompt.

Is        a `CustomLLM`: completions, chat through the tokenizer's template, streams; async ones off the event loop.
Flow      UltraGistPostprocessor -> prompt -> [llm] -> answer. Imports the front door only.
Change    what a response says about itself.
Not here  settings -> ultragist_rag.components; markers, queue, decoding -> ultragist_rag.reader.
Holds     nothing is loaded when the object is made; a marker is read or refused, or stays plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from llama_index_ultragist.messages import to_reader
from ultragist_rag.components import ReadFields
from ultragist_rag.requests import in_thread, iterate

__all__ = ["UltraGistLLM"]

_Cancelled = Callable[[], bool] | None


class UltraGistLLM(ReadFields, CustomLLM):
    """Answers prompts and conversations in which markers stand for compressed documents.

    Markers are resolved through `store`, and so within its namespace only; each memory is read once, however often its
    marker stands in a prompt. `complete` reads its prompt as it is; `chat`, which LlamaIndex's engines use where the
    tokenizer has a chat template, writes messages with that template. `raw` of a response holds the counts of tokens
    and slots, the reason why the answer ended and the name of the model; and under `ultragist`, if there are any, how
    many documents were read from their text since the calibration of the model says so.
    """

    context_window: int | None = None
    """Tokens, slots and answer that a prompt may take together; None asks the model, which loads it."""

    is_chat_model: bool | None = None
    """Whether engines should use `chat`; None asks the tokenizer for a chat template, which loads the model."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "UltraGistLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex packs prompts by."""
        window, is_chat = self.context_window, self.is_chat_model
        if is_chat is None:
            is_chat = bool(getattr(self._get_engine().tokenizer, "chat_template", None))
        return LLMMetadata(
            context_window=self._reader().max_positions if window is None else window,
            num_output=self.max_tokens,
            is_chat_model=is_chat,
            model_name=self._name,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt.

        Args:
            prompt: Text with markers.
            formatted: Whether `completion_to_prompt` was applied already.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer.
        """
        return self._completion(self._pieces(prompt, formatted), kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt bit by bit.

        Args:
            prompt: Text with markers.
            formatted: Whether `completion_to_prompt` was applied already.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer as it grows; closing it ends decoding.
        """
        return self._completions(lambda: self._pieces(prompt, formatted), kwargs)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation.

        Args:
            messages: Messages with markers in their texts.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer.
        """
        return _chat(self._completion(self._chat_pieces(messages), kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation bit by bit.

        Args:
            messages: Messages with markers in their texts.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer as it grows; closing it ends decoding.
        """
        return _chats(self._completions(lambda: self._chat_pieces(messages), kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt in a thread; cancelling the task ends decoding.

        Args:
            prompt: Text with markers.
            formatted: Whether `completion_to_prompt` was applied already.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer.
        """
        return await in_thread(lambda cancelled: self._completion(self._pieces(prompt, formatted), kwargs, cancelled))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt bit by bit in a thread.

        Args:
            prompt: Text with markers.
            formatted: Whether `completion_to_prompt` was applied already.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer as it grows; closing it, or cancelling the task, ends decoding.
        """
        return iterate(lambda cancelled: self._completions(lambda: self._pieces(prompt, formatted), kwargs, cancelled))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation in a thread; cancelling the task ends decoding.

        Args:
            messages: Messages with markers in their texts.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer.
        """
        return await in_thread(
            lambda cancelled: _chat(self._completion(self._chat_pieces(messages), kwargs, cancelled))
        )

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation bit by bit in a thread.

        Args:
            messages: Messages with markers in their texts.
            kwargs: Settings of decoding for this call.

        Returns:
            The answer as it grows; closing it, or cancelling the task, ends decoding.
        """
        return iterate(
            lambda cancelled: _chats(self._completions(lambda: self._chat_pieces(messages), kwargs, cancelled))
        )

    def _pieces(self, prompt: str, formatted: bool) -> list[Any]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return self._reader().pieces(prompt)

    def _chat_pieces(self, messages: Sequence[ChatMessage]) -> list[Any]:
        return self._reader().chat_pieces(to_reader(messages))

    def _completion(
        self, pieces: list[Any], kwargs: dict[str, Any], cancelled: _Cancelled = None
    ) -> CompletionResponse:
        (answer,) = self._reader().answer([pieces], cancelled=cancelled, **self._decoding(None, kwargs))
        cited = self._cited(pieces, answer.sources)
        return CompletionResponse(text=answer.text, raw=self._raw(answer, len(answer.ids)), additional_kwargs=cited)

    def _completions(
        self, make_pieces: Callable[[], list[Any]], kwargs: dict[str, Any], cancelled: _Cancelled = None
    ) -> CompletionResponseGen:
        text, pieces = "", make_pieces()
        with self._reader().stream(pieces, cancelled=cancelled, **self._decoding(None, kwargs)) as stream:
            for delta in stream:
                text += delta
                yield CompletionResponse(text=text, delta=delta)
            raw, cited = self._raw(stream, stream.n_tokens), self._cited(pieces, stream.sources)
            yield CompletionResponse(text=text, delta="", raw=raw, additional_kwargs=cited)

    def _raw(self, answer: Any, n_tokens: int) -> dict[str, Any]:
        n_prompt = answer.n_slots + answer.n_prompt_tokens
        usage = {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_tokens,
            "total_tokens": n_prompt + n_tokens,
            "prompt_tokens_details": {"cached_tokens": answer.n_slots},
        }
        return {"model": self._name, "finish_reason": answer.finish, "usage": usage} | self._marked(answer.n_from_text)


def _chat(response: CompletionResponse) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=response.text)
    kwargs = response.additional_kwargs
    return ChatResponse(message=message, delta=response.delta, raw=response.raw, additional_kwargs=kwargs)


def _chats(responses: Iterator[CompletionResponse]) -> ChatResponseGen:
    for response in responses:
        yield _chat(response)
