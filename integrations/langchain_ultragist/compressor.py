"""Documents in, documents out, each text replaced by the marker of its memory.

Is        a `BaseDocumentCompressor`: the last stage behind a retriever (a later reranker would read the marker).
Flow      retriever -> [compressor] -> prompt -> ChatUltraGist. Imports the front door only.
Change    what LangChain learns about a document's memory.
Not here  budget, references, look-alikes -> ultragist_rag.condense; reading markers -> ultragist_rag.reader.
Holds     one document in, one out, in order, with its metadata and id; what is stored is not compressed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from langchain_core.callbacks import Callbacks, dispatch_custom_event
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from ultragist_rag import InputError
from ultragist_rag.components import CondenseFields
from ultragist_rag.condense import REFERENCE, Condensed, condense
from ultragist_rag.store import parse_marker

__all__ = ["UltraGistCompressor"]

_NAME = "UltraGistCompressor"


class UltraGistCompressor(CondenseFields, BaseDocumentCompressor):
    """Replaces the text of each document by the marker of its gist memory.

    Memories that the store has are reused; all others are compressed in one batch and stored with their text, which
    `store.source(marker).text` returns. Look-alikes of markers inside documents are made harmless first. Make it the
    last stage behind a retriever: what comes later sees the marker.

    Each call is a run named `UltraGistCompressor` in traces, with an event `ultragist_condensed` that counts documents,
    memories and tokens.

    Example:
        >>> compressor = UltraGistCompressor(store=store, slots=512, score_key="score")  # doctest: +SKIP
        >>> retriever = vector_store.as_retriever() | compressor.as_runnable()  # doctest: +SKIP
    """

    score_key: str | None = None
    """Where metadata hold the score that divides `slots`; None divides by rank, the first document being the best."""

    score_order: Literal["higher", "lower"] = "higher"
    """Which scores are better; distances, as FAISS gives them, are better the lower they are."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Replace texts by markers.

        Args:
            documents: Retrieved documents, the best first; they are not changed. Empty and short ones keep their text;
                one that shows its marker already passes as it is.
            query: Not used: a memory serves every question.
            callbacks: Told about the run.

        Returns:
            One document per document, in order, with its id and metadata. Where the text is a marker now, the metadata
            say so under `ultragist_id`.
        """
        return self.as_runnable().invoke(documents, {"callbacks": callbacks})

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Do what `compress_documents` does, in a thread.

        Args:
            documents: Retrieved documents, the best first.
            query: Not used.
            callbacks: Told about the run.

        Returns:
            As `compress_documents`.
        """
        return await self.as_runnable().ainvoke(documents, {"callbacks": callbacks})

    def as_runnable(self) -> Runnable[Sequence[Document], list[Document]]:
        """Return a step for chains: `retriever | compressor.as_runnable() | ...`."""
        return RunnableLambda(self._condense, name=_NAME)

    def _condense(self, documents: Sequence[Document], config: RunnableConfig) -> list[Document]:
        strange = next((one for one in documents if not isinstance(one, Document)), None)
        if strange is not None:
            raise InputError(f"a {type(strange).__name__} is no Document: wrap texts as Document(page_content=text).")
        condensed = condense(
            self._get_engine(),
            self.store,
            [document.page_content for document in documents],
            policy=self._policy(),
            scores=self._scores(documents),
            references=[_reference(document) for document in documents],
            metadata=[
                {key: value for key, value in document.metadata.items() if key != REFERENCE} for document in documents
            ],
        )
        event = {
            "n_documents": len(documents),
            "n_memories": len({each.marker for each in condensed} - {None}),
            "n_tokens": sum(each.n_tokens for each in condensed),
        }
        dispatch_custom_event("ultragist_condensed", event, config=config)
        return [_shown(document, each) for document, each in zip(documents, condensed, strict=True)]

    def _scores(self, documents: Sequence[Document]) -> list[float] | None:
        """Return scores of which higher ones are better."""
        if self.score_key is None:
            return None
        scores = [_number(document.metadata.get(self.score_key), self.score_key) for document in documents]
        if self.score_order == "higher":
            return scores
        # The usual way from a distance to a similarity; what is below 0 is no distance, but an order all the same.
        return [1 / (1 + score) for score in scores] if min(scores, default=0) >= 0 else [-score for score in scores]


def _number(score: object, key: str) -> float:
    try:
        return float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a document has {score!r} under {key!r}, but score_key needs a number in the metadata of every document. "
            "Have the retriever put it there, or leave score_key out: then the rank decides."
        ) from error


def _reference(document: Document) -> str | None:
    reference = document.metadata.get(REFERENCE)
    return reference if isinstance(reference, str) else None


def _shown(document: Document, condensed: Condensed) -> Document:
    """Copy a document with what a prompt is to show; an old reference that says nothing true any more goes."""
    metadata = {key: value for key, value in document.metadata.items() if key != REFERENCE}
    if condensed.marker is not None:
        metadata[REFERENCE] = parse_marker(condensed.marker)
    return document.model_copy(update={"page_content": condensed.text, "metadata": metadata})
