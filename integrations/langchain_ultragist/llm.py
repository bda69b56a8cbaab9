"""A LangChain LLM that reads the memories behind the markers of a prompt.

Is        a `BaseLLM`: prompts arrive together and are answered in one batch; streaming, stop texts, token counts.
Flow      UltraGistCompressor -> prompt -> [llm] -> answer. Imports the front door only.
Change    what an answer says about itself.
Not here  settings -> ultragist_rag.components; queue, decoding -> ultragist_rag.reader; caches -> answering.py.
Holds     nothing is loaded when the object is made; a marker that the store does not know is never passed on as text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from langchain_ultragist.answering import AnsweringModel
from ultragist_rag.requests import in_thread, iterate

__all__ = ["UltraGistLLM"]

_TRACING = frozenset({"tags", "metadata", "run_name", "run_id"})


class UltraGistLLM(AnsweringModel, BaseLLM):
    """Answers prompts in which markers stand for compressed documents.

    Markers are resolved through `store`, and so within its namespace only. One that is unknown there raises
    `GistNotFoundError`; one that stands in the prompt twice is read once. Prompts of a batch are answered together.

    Example:
        >>> llm = UltraGistLLM(model="bundled", max_tokens=20)  # loads nothing yet
        >>> llm.invoke("What is a gist?")  # doctest: +SKIP
    """

    @property
    def _llm_type(self) -> str:
        return "ultragist"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self._tracing("llm", stop, kwargs)

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Answer prompts in one batch, those that a response cache knows apart; see `BaseLLM.generate`.

        Args:
            prompts: Texts with markers.
            stop: Texts that end an answer, besides those of the object.
            callbacks: As LangChain passes them.
            kwargs: Tags, metadata and names of the runs; settings of decoding for this call.

        Returns:
            One generation per prompt, and in `llm_output` what the call took in tokens and memory slots.
        """
        model = self._guarded(lambda: prompts, _settings(kwargs))
        return super(UltraGistLLM, model).generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Do what `generate` does, without keeping the event loop busy.

        Args:
            prompts: Texts with markers.
            stop: Texts that end an answer, besides those of the object.
            callbacks: As LangChain passes them.
            kwargs: As for `generate`.

        Returns:
            As `generate`.
        """
        model = await in_thread(lambda _: self._guarded(lambda: prompts, _settings(kwargs)))
        return await super(UltraGistLLM, model).agenerate(prompts, stop, callbacks, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return self._answer(prompts, stop, kwargs)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return await in_thread(lambda cancelled: self._answer(prompts, stop, kwargs, cancelled))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._chunks(prompt, stop, kwargs):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        chunks = iterate(lambda cancelled: self._chunks(prompt, stop, kwargs, cancelled))
        try:
            async for chunk in chunks:
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
        finally:
            await chunks.aclose()

    def _answer(
        self,
        prompts: list[str],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        cancelled: Callable[[], bool] | None = None,
    ) -> LLMResult:
        reader = self._reader()
        batch = [reader.pieces(prompt) for prompt in prompts]
        answers = reader.answer(batch, cancelled=cancelled, **self._decoding(stop, kwargs))
        counts = [(answer.n_prompt_tokens, answer.n_slots, len(answer.ids)) for answer in answers]
        return LLMResult(
            generations=[
                [
                    Generation(
                        text=answer.text,
                        generation_info={"finish_reason": answer.finish}
                        | self._marked(answer.n_from_text)
                        | self._cited(pieces, answer.sources),
                    )
                ]
                for pieces, answer in zip(batch, answers, strict=True)
            ],
            llm_output={"token_usage": _usage(*map(sum, zip(*counts, strict=True))), "model_name": self._name}
            | self._marked(sum(answer.n_from_text for answer in answers)),
        )

    def _chunks(
        self, prompt: str, stop: list[str] | None, kwargs: dict[str, Any], cancelled: Callable[[], bool] | None = None
    ) -> Iterator[GenerationChunk]:
        reader = self._reader()
        pieces = reader.pieces(prompt)
        with reader.stream(pieces, cancelled=cancelled, **self._decoding(stop, kwargs)) as stream:
            for text in stream:
                yield GenerationChunk(text=text)
            usage = _usage(stream.n_prompt_tokens, stream.n_slots, stream.n_tokens)
            info = {"finish_reason": stream.finish, "token_usage": usage, "model_name": self._name}
            cited = self._cited(pieces, stream.sources)
            yield GenerationChunk(text="", generation_info=info | self._marked(stream.n_from_text) | cited)


def _settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in _TRACING}


def _usage(n_prompt_tokens: int = 0, n_slots: int = 0, n_tokens: int = 0) -> dict[str, int]:
    n_input = n_prompt_tokens + n_slots
    return {
        "prompt_tokens": n_input,
        "memory_slots": n_slots,
        "completion_tokens": n_tokens,
        "total_tokens": n_input + n_tokens,
    }
