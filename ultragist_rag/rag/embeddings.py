"""Turn texts into vectors for retrieval: hashed word counts by default, any sentence-transformers model by name.

Is        objects with `embed_documents` and `embed_query`, the two methods that LangChain's `Embeddings` have as well.
Flow      files -> [embeddings] -> index.
Paper     feature hashing, Weinberger et al. 2009 (scikit-learn's `HashingVectorizer`); weights: BM25-like tf, idf.
Change    how words are cut and weighted (raise the number in the name: an index made with the old one is refused).
Holds     nothing is downloaded by the default; vectors have length 1; what `fit` learned is saved with the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from ultragist_rag.errors import InputError

__all__ = ["Embeddings", "HashingEmbeddings", "SentenceTransformerEmbeddings", "load_embeddings"]


@runtime_checkable
class Embeddings(Protocol):
    """What an index needs of embeddings."""

    name: str

    def fit(self, texts: Sequence[str]) -> None:
        """Learn what the corpus teaches, for instance how rare each word is."""

    def state(self) -> dict[str, Any]:
        """Return what `fit` learned as plain JSON values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""

    def embed_documents(self, texts: list[str]) -> Float32[ndarray, "texts dims"]:
        """Return one vector of length 1 per text."""

    def embed_query(self, text: str) -> Float32[ndarray, " dims"]:
        """Return the vector of a question."""


class HashingEmbeddings:
    """Words with word pairs, and parts of words, hashed and weighted by rarity. Needs no model and no network.

    One half of a vector holds words (exact names), the other runs of three to five characters (other endings of the
    same word); both count the same.

    Args:
        dims: Number of places, an even number.

    Raises:
        InputError: If scikit-learn is not installed.
    """

    name = "hashing-1"

    def __init__(self, dims: int = 4_096) -> None:
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ImportError as error:
            raise InputError(
                "hashing embeddings need scikit-learn (sklearn). Run: pip install 'ultragist-rag[retrieval]'"
            ) from error
        half = {"n_features": dims // 2, "norm": None, "dtype": np.float32}
        self._halves = (
            HashingVectorizer(ngram_range=(1, 2), stop_words="english", **half),
            HashingVectorizer(ngram_range=(3, 5), analyzer="char_wb", **half),
        )
        self._idf = np.ones((len(self._halves), dims // 2), np.float32)

    def fit(self, texts: Sequence[str]) -> None:
        """Weigh each place by how few texts use it."""
        used = np.stack([np.asarray((half.transform(texts) != 0).sum(axis=0)).ravel() for half in self._halves])
        self._idf = (np.log((1 + len(texts)) / (1 + used)) + 1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return the weights."""
        return {"idf": [[round(float(weight), 6) for weight in half] for half in self._idf]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the weights back."""
        idf = np.asarray(state["idf"], np.float32)
        if idf.shape != self._idf.shape:
            raise ValueError(f"weights of shape {idf.shape} instead of {self._idf.shape}")
        self._idf = idf

    def embed_documents(self, texts: list[str]) -> Float32[ndarray, "texts dims"]:
        """Return one vector of length 1 per text (shorter for a text of stop words only)."""
        parts = [
            self._weigh(half.transform(texts).toarray(), idf) for half, idf in zip(self._halves, self._idf, strict=True)
        ]
        return np.asarray(np.concatenate(parts, axis=1) / len(parts) ** 0.5, np.float32)

    def embed_query(self, text: str) -> Float32[ndarray, " dims"]:
        """Return the vector of a question."""
        return np.asarray(self.embed_documents([text])[0])

    @staticmethod
    def _weigh(counts: ndarray, idf: ndarray) -> ndarray:
        weights = np.sign(counts) * np.log1p(np.abs(counts)) * idf
        return np.asarray(weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-9))


class SentenceTransformerEmbeddings:
    """A model of the sentence-transformers library, from a folder or the hub.

    Args:
        model: Its folder or hub id.

    Raises:
        InputError: If the library is not installed or the model cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(
                "sentence-transformers is not installed. Run: pip install 'ultragist-rag[sentence-transformers]'"
            ) from error
        self.name = f"sentence-transformers:{model}"
        try:
            self._model = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"embedding model {model!r} cannot be loaded: {reason}") from error

    def fit(self, texts: Sequence[str]) -> None:
        """Learn nothing: the model is ready."""

    def state(self) -> dict[str, Any]:
        """Return nothing: the model is named, not saved."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""

    def embed_documents(self, texts: list[str]) -> Float32[ndarray, "texts dims"]:
        """Return one vector of length 1 per text."""
        vectors = self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    def embed_query(self, text: str) -> Float32[ndarray, " dims"]:
        """Return the vector of a question."""
        return np.asarray(self.embed_documents([text])[0])


def load_embeddings(name: str) -> Embeddings:
    """Return embeddings by name.

    Args:
        name: `hashing`, or `sentence-transformers:` and a folder or hub id; also a name that an index has recorded.

    Returns:
        The embeddings, not fitted.

    Raises:
        InputError: If there are none of that name.
    """
    kind, _, model = name.partition(":")
    if name in {"hashing", HashingEmbeddings.name}:
        return HashingEmbeddings()
    if kind == "sentence-transformers" and model:
        return SentenceTransformerEmbeddings(model)
    raise InputError(f"embeddings {name!r} are unknown. Use 'hashing' or 'sentence-transformers:NAME'.")
