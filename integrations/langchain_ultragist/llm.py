"""A LangChain LLM that reads the memories behind the markers of a prompt.

Is        a `BaseLLM`: prompts arrive together and are answered in one batch; streaming, stop texts, token counts.
Flow      UltraGistCompressor -> prompt -> [llm] -> answer. Imports the front door only.
Change    settings of decoding that a chain may set.
Not here  assembly and decoding -> ultragist_rag.UltraGist.generate; markers and ids -> ultragist_rag.store.
Holds     nothing is loaded when the object is made; a marker that the store does not know is never passed on as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, PrivateAttr

from ultragist_rag import GistMemory, GistStore, UltraGist
from ultragist_rag.shared import shared_engine

__all__ = ["UltraGistLLM"]


class UltraGistLLM(BaseLLM):
    """Answers prompts in which markers stand for compressed documents.

    Markers are resolved through `store`, and so within its namespace only. One that is unknown there raises
    `GistNotFoundError`; one that stands in the prompt twice is read once.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, protected_namespaces=())

    store: GistStore = Field(exclude=True, repr=False)
    """Where the memories are."""

    model_name: str = Field(default="bundled", alias="model")
    """What `UltraGist.from_pretrained` loads at first use; not used if `engine` is given."""

    engine: UltraGist | None = Field(default=None, exclude=True, repr=False)
    """A loaded engine, used instead of `model_name`."""

    max_tokens: int = Field(default=64, alias="max_new_tokens", ge=1)
    """Longest answer in tokens."""

    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token, more lets chance in."""

    stop: list[str] | None = None
    """Texts that end an answer; they are not part of it."""

    _loaded: UltraGist | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "ultragist"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model_name": self.engine.fingerprint if self.engine else self.model_name,
            "namespace": self.store.namespace,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stop": self.stop,
        }

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of a text; a marker counts as the text that it is.

        Args:
            text: Any text; special tokens in it are plain characters.

        Returns:
            Token ids, without a lead token.
        """
        tokenizer = self._engine().tokenizer
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def pieces(self, prompt: str) -> list[str | GistMemory]:
        """Cut a prompt at its markers and fetch the memories behind them.

        Args:
            prompt: Text with markers.

        Returns:
            Texts and memories in reading order, as `UltraGist.generate` takes them; each memory once.
        """
        pieces: list[str | GistMemory] = []
        for piece in self.store.resolve(self._engine(), prompt):
            if isinstance(piece, str) or not any(piece is earlier for earlier in pieces):
                pieces.append(piece)
        return pieces

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        batch = [self.pieces(prompt) for prompt in prompts]
        answers = self._engine().generate(batch, **self._decoding(stop, kwargs))
        usage = {
            "prompt_tokens": sum(len(self.get_token_ids(piece)) for piece in _flat(batch) if isinstance(piece, str)),
            "memory_slots": sum(piece.slots for piece in _flat(batch) if isinstance(piece, GistMemory)),
            "completion_tokens": sum(len(self.get_token_ids(answer)) for answer in answers),
        }
        usage["total_tokens"] = sum(usage.values())
        generations = [[Generation(text=answer)] for answer in answers]
        return LLMResult(
            generations=generations,
            llm_output={"token_usage": usage, "model_name": self._identifying_params["model_name"]},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for text in self._engine().stream(self.pieces(prompt), **self._decoding(stop, kwargs)):
            chunk = GenerationChunk(text=text)
            if run_manager:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk

    def _decoding(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {"max_new_tokens": kwargs.pop("max_tokens", self.max_tokens)}
        temperature = kwargs.pop("temperature", self.temperature)
        settings |= {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        if stops := [*(self.stop or []), *(stop or [])]:
            settings["stop"] = stops
        return settings | kwargs

    def _engine(self) -> UltraGist:
        if self._loaded is None:
            self._loaded = self.engine or shared_engine(self.model_name)
        return self._loaded


def _flat(batch: list[list[str | GistMemory]]) -> Iterator[str | GistMemory]:
    return (piece for pieces in batch for piece in pieces)
