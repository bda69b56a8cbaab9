"""Documents in, documents out, each text replaced by the marker of its memory.

Is        a `BaseDocumentCompressor`: the last stage behind a retriever (a later reranker would read the marker).
Flow      retriever -> [compressor] -> prompt -> UltraGistLLM. Imports the front door only.
Change    what is kept with a memory.
Not here  reading markers -> llm.py; looking up, ids, files, eviction -> ultragist_rag.store.
Holds     one document in, one out, in order, with its metadata and id; what is stored is not compressed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import ConfigDict, Field, PrivateAttr

from ultragist_rag import GistStore, UltraGist
from ultragist_rag.shared import shared_engine
from ultragist_rag.store import neutralise

__all__ = ["UltraGistCompressor"]


class UltraGistCompressor(BaseDocumentCompressor):
    """Replaces the text of each document by the marker of its gist memory.

    Memories that the store has are reused; all others are compressed together and stored with their text, which
    `store.source(marker)` returns. Look-alikes of markers inside documents are made harmless first.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    store: GistStore = Field(exclude=True, repr=False)
    """Where memories are kept; the same object, or one of the same place and namespace, goes to the LLM."""

    model: str = "bundled"
    """What `UltraGist.from_pretrained` loads at first use; not used if `engine` is given."""

    engine: UltraGist | None = Field(default=None, exclude=True, repr=False)
    """A loaded engine, used instead of `model`."""

    ratio: int | None = None
    """Raw tokens per gist token; None takes the ratio of the model's config."""

    _loaded: UltraGist | None = PrivateAttr(default=None)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Replace texts by markers.

        Args:
            documents: Retrieved documents; they are not changed. One without text stays as it is.
            query: Not used: a memory serves every question.
            callbacks: Not used.

        Returns:
            One document per document, in order, with its metadata and id.
        """
        full = {place: document for place, document in enumerate(documents) if document.page_content.strip()}
        markers = self.store.get_or_compress(
            self._engine(),
            [neutralise(document.page_content) for document in full.values()],
            ratio=self.ratio,
            metadata=[_plain(document.metadata) for document in full.values()],
        )
        contents = dict(zip(full, markers, strict=True))
        return [
            document.model_copy(update={"page_content": contents.get(place, document.page_content)})
            for place, document in enumerate(documents)
        ]

    def as_runnable(self) -> Runnable[Sequence[Document], Sequence[Document]]:
        """Return a step for chains: `retriever | compressor.as_runnable() | ...`."""
        return RunnableLambda(lambda documents: self.compress_documents(documents, ""), name="UltraGistCompressor")

    def _engine(self) -> UltraGist:
        if self._loaded is None:
            self._loaded = self.engine or shared_engine(self.model)
        return self._loaded


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can carry."""
    kept = {}
    for name, value in metadata.items():
        try:
            kept[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return kept
