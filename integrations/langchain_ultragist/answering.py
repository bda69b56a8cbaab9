"""What the chat model and the LLM have in common: names, token counts, tracing, and when a cached answer is fresh.

Is        a pydantic mixin over the reading settings that LlamaIndex's components have too.
Flow      ultragist_rag.components -> [answering] -> chat.py, llm.py.
Change    what an answer depends on, and so what the key of a response cache holds.
Not here  settings and their meaning -> ultragist_rag.components; the queue, markers, templates -> ultragist_rag.reader.
Holds     a cached answer is given only if asking the model again would give it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.globals import get_llm_cache
from langchain_core.language_models import LangSmithParams
from pydantic import PrivateAttr, model_validator

from ultragist_rag import UltraGist, __version__
from ultragist_rag.components import ReadFields
from ultragist_rag.store.refs import repair, split
from ultragist_rag.store.scope import current_scope

if TYPE_CHECKING:
    from langchain_core.caches import BaseCache

__all__ = ["AnsweringModel"]


class AnsweringModel(ReadFields):
    """Mixin of `ChatUltraGist` and `UltraGistLLM`."""

    if TYPE_CHECKING:  # fields and methods of LangChain's base class
        cache: BaseCache | bool | None = None
        custom_get_token_ids: Callable[[str], list[int]] | None = None

        def _add_version(self, pkg: str, version: str) -> None: ...

    _key: dict[str, Any] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        """Go on to LangChain's own, which notes its version."""
        super().model_post_init(context)

    @model_validator(mode="after")
    def _set_ultragist_version(self) -> Self:
        self._add_version("ultragist-rag", __version__)
        return self

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of a text; a marker counts as the text that it is.

        Args:
            text: Any text; special tokens in it are plain characters.

        Returns:
            Token ids, without a lead token.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._reader().token_ids(text)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        decoding = ("max_tokens", "temperature", "top_p", "top_k", "seed", "source_bias", "stop")
        return {
            "model_name": self._name,
            "model_kwargs": str(self.model_dump(include={"model_kwargs"})["model_kwargs"]),
            "namespace": self.store.namespace if self.store else None,
            "sources": self.sources,
            **{name: getattr(self, name) for name in (*decoding, "max_slots", "unknown_markers")},
            **self._key,
        }

    def _tracing(
        self, kind: Literal["chat", "llm"], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> LangSmithParams:
        """Parameters by the names that traces give them; settings of the call come before those of the object."""
        params = LangSmithParams(
            ls_provider="ultragist",
            ls_model_name=kwargs.get("model", self._name),
            ls_model_type=kind,
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if stops := stop or self.stop:
            params["ls_stop"] = stops
        return params

    def _window(self) -> int | None:
        """Positions of the model, as far as they are known without loading it."""
        if self.engine is not None:
            return self.engine.max_positions
        folder = files("ultragist_rag") / "bundled" if self.model_name == "bundled" else Path(self.model_name)
        config = folder / "config.json"
        if not config.is_file():
            return None
        limit = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
        return limit if isinstance(limit, int) else None

    def _guarded(self, prompts: Callable[[], Iterable[str]], kwargs: Mapping[str, Any]) -> Self:
        """Return the model as a response cache may know it.

        Its key gets what its name does not tell: which weights it has, and the settings of the call. Without a cache is
        a model whose next answer the cache cannot know: it draws by chance, or a marker means nothing any more.
        """
        if self.cache is False or (not self.cache and get_llm_cache() is None):
            return self
        engine = self._get_engine()
        decoding = self._decoding(None, dict(kwargs))
        by_chance = decoding.get("do_sample") and decoding.get("seed") is None
        if by_chance or not all(map(self._is_readable, prompts())):
            return self.model_copy(update={"cache": False})
        keyed = self.model_copy()
        keyed._key = {"engine": _digest(engine), "call": sorted((name, repr(value)) for name, value in kwargs.items())}
        return keyed

    def _is_readable(self, prompt: str) -> bool:
        scope = current_scope()
        markers = [part.marker for part in split(repair(prompt)) if not isinstance(part, str)]
        if not markers or self.store is None:
            return not markers
        return all(marker in self.store and (scope is None or marker in scope) for marker in markers)


def _digest(engine: UltraGist) -> str:
    """Name everything of an engine that answers depend on."""
    template, defaults = engine.tokenizer.chat_template, engine.model.generation_config.to_dict()
    settings = (template, sorted(defaults.items()), engine.calibration, engine.source_bias)
    parts = (engine.fingerprint, engine.tokenizer_fingerprint, *settings)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
