"""Ingestion: compress chunks when they are indexed, and write down which memory is theirs.

Is        a `TransformComponent`: splitter -> [transform] -> embedding -> vector store. Imports the front door only.
Change    what a node says about its memory.
Not here  showing markers to a language model -> postprocessor.py; looking up, batches -> ultragist_rag.condense.
Holds     text, id and what embedders and prompts see stay as they are; one metadata key is written, in copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from llama_index.core.schema import BaseNode, TransformComponent
from pydantic import ConfigDict, Field

from llama_index_ultragist.node import is_text, reference_of, text_of
from ultragist_rag.components import EngineFields
from ultragist_rag.condense import REFERENCE, CondensePolicy, condense
from ultragist_rag.errors import InputError
from ultragist_rag.requests import in_thread
from ultragist_rag.store import GistStore, parse_marker

__all__ = ["GistTransform"]


class GistTransform(EngineFields, TransformComponent):
    """Compresses nodes and puts the ids of their memories into `metadata["ultragist_id"]`.

    The id says nothing to embedders and language models, and is hidden from both. `UltraGistPostprocessor` finds the
    memory by it, and makes it again where it is gone: an ingestion cache may have skipped this step, or the store made
    room. The cache tells transforms apart by model, ratio, `min_tokens`, `verbatim` and the namespace of the
    store.
    """

    model_config = ConfigDict(extra="forbid")

    store: GistStore = Field(exclude=True, repr=False)
    """Where memories are kept; the postprocessor needs one of the same place and namespace."""

    ratio: int | None = None
    """Raw tokens per gist token; None takes the ratio of the model's config."""

    min_tokens: int = 0
    """Shorter texts get no memory and no id."""

    verbatim: str | None = None
    """Policy of the tokens that stay raw beside the gists: `codes`, `regex`, `surprisal`, `both` or one of your own."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "GistTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Compress the texts of nodes, all misses in one batch.

        Args:
            nodes: Nodes or documents; those with images, sound or video pass as they are.
            kwargs: Of the pipeline; none is used.

        Returns:
            Copies of the nodes with their ids written, in order.

        Raises:
            InputError: If a setting does not fit.
            StoreError: If a memory does not fit, or the place cannot be written.
        """
        texts = [node for node in nodes if is_text(node)]
        if not texts:
            return list(nodes)
        made = condense(
            self._get_engine(),
            self.store,
            [text_of(node) for node in texts],
            policy=CondensePolicy(ratio=self.ratio, min_tokens=self.min_tokens, verbatim=self.verbatim),
            references=[reference_of(node) for node in texts],
            metadata=[node.metadata for node in texts],
        )
        markers = iter(made)
        return [_referring(node, next(markers).marker) if is_text(node) else node for node in nodes]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Do the same in a thread, off the event loop.

        Args:
            nodes: Nodes or documents.
            kwargs: Of the pipeline; none is used.

        Returns:
            Copies of the nodes with their ids written, in order.
        """
        return await in_thread(lambda _: self(nodes, **kwargs))

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the settings; an ingestion cache keys on them.

        Args:
            kwargs: Of `model_dump`.

        Returns:
            Public fields, the namespace of the store and, if an engine was given, its fingerprint.
        """
        engine = {} if self.engine is None else {"fingerprint": self.engine.fingerprint}
        return {**super().to_dict(**kwargs), "namespace": self.store.namespace, **engine}

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "GistTransform holds a model and a store and cannot go to worker processes: leave num_workers at None. "
            "It compresses in batches anyway. Splitters that use workers can run in a pipeline of their own before it."
        )


def _referring(node: BaseNode, marker: str | None) -> BaseNode:
    metadata = {name: value for name, value in node.metadata.items() if name != REFERENCE}
    if marker is None:
        return node.model_copy(update={"metadata": metadata})
    hidden = {
        field: [*(name for name in getattr(node, field) if name != REFERENCE), REFERENCE]
        for field in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": {**metadata, REFERENCE: parse_marker(marker)}, **hidden})
