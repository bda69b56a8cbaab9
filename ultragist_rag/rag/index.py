"""Find the passages of a question: a FAISS index and a JSON file beside it.

Is        `index.faiss` (vectors) and `index.json` (passages, embeddings, which model the memories are for, a checksum).
Flow      files, embeddings -> [index] -> the retriever of a chain.
Change    the kind of FAISS index; what is remembered beside the vectors (raise FORMAT).
Not here  the memories themselves -> store.
Holds     nothing is unpickled; an index is whole or refused; files are replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultragist_rag.errors import CorruptGistError, InputError
from ultragist_rag.rag.embeddings import Embeddings, load_embeddings
from ultragist_rag.rag.files import Passage

__all__ = ["PassageIndex"]

FORMAT = 1
_VECTORS = "index.faiss"
_RECORD = "index.json"


@dataclass(frozen=True, slots=True)
class PassageIndex:
    """Passages and their vectors.

    Attributes:
        passages: In the order of the vectors.
        embeddings: Made the vectors, and makes those of questions.
        vectors: FAISS index, inner product.
        about: What the maker wants to find again: model, fingerprint, ratio...; plain JSON values.
    """

    passages: tuple[Passage, ...]
    embeddings: Embeddings
    vectors: Any
    about: dict[str, Any]

    @classmethod
    def build(
        cls, passages: Sequence[Passage], embeddings: Embeddings, about: dict[str, Any] | None = None
    ) -> PassageIndex:
        """Embed passages.

        Args:
            passages: At least one.
            embeddings: Fitted here.
            about: Kept with the index.

        Returns:
            The index, in memory.

        Raises:
            InputError: If there are no passages.
        """
        faiss = _faiss()
        if not passages:
            raise InputError("there is no passage to index. Give at least one.")
        texts = [passage.text for passage in passages]
        embeddings.fit(texts)
        matrix = np.ascontiguousarray(embeddings.embed_documents(texts))
        vectors = faiss.IndexFlatIP(matrix.shape[1])
        vectors.add(matrix)
        return cls(tuple(passages), embeddings, vectors, dict(about or {}))

    def search(self, question: str, k: int = 4) -> list[tuple[Passage, float]]:
        """Return the passages nearest to a question, best first.

        Args:
            question: In words.
            k: How many passages at most.

        Returns:
            Passages with their similarity (cosine, higher is nearer).

        Raises:
            InputError: If the question is empty or `k` is below 1.
        """
        if not question.strip():
            raise InputError("the question is empty. Ask something.")
        if k < 1:
            raise InputError(f"k is {k}: at least 1 passage must be retrieved.")
        scores, places = self.vectors.search(self.embeddings.embed_query(question)[None], min(k, len(self.passages)))
        return [(self.passages[place], float(score)) for place, score in zip(places[0], scores[0], strict=True)]

    def save(self, folder: Path) -> None:
        """Write the index into a folder, in place of the one that is there.

        Args:
            folder: Made if missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        data = _faiss().serialize_index(self.vectors).tobytes()
        record = {
            "format": FORMAT,
            "sha256": hashlib.sha256(data).hexdigest(),
            "embeddings": {"name": self.embeddings.name, "state": self.embeddings.state()},
            "about": self.about,
            "passages": [asdict(passage) for passage in self.passages],
        }
        _replace(folder / _VECTORS, data)
        _replace(folder / _RECORD, json.dumps(record, ensure_ascii=False, indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> PassageIndex:
        """Read what `save` wrote.

        Args:
            folder: Where the index is.

        Returns:
            The index.

        Raises:
            InputError: If there is no index.
            CorruptGistError: If a file is missing, altered, truncated or of an unknown version.
        """
        _faiss()
        if not (folder / _RECORD).is_file():
            raise InputError(f"there is no index in {str(folder)!r}. Make one: ultragist-rag index FOLDER")
        try:
            record, passages, vectors = _read(folder)
            embeddings = load_embeddings(record["embeddings"]["name"])
            embeddings.restore(record["embeddings"]["state"])
            return cls(passages, embeddings, vectors, dict(record["about"]))
        except InputError:
            raise  # the embeddings are not installed, say: the files are whole
        except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptGistError(
                f"the index in {str(folder)!r} is corrupt ({reason}). Make it again: ultragist-rag index FOLDER"
            ) from error


def _read(folder: Path) -> tuple[dict[str, Any], tuple[Passage, ...], Any]:
    record = json.loads((folder / _RECORD).read_bytes())
    data = (folder / _VECTORS).read_bytes()
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']!r} is not {FORMAT}")
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise ValueError(f"{_VECTORS} is not the file that {_RECORD} describes")
    passages = tuple(Passage(**passage) for passage in record["passages"])
    vectors = _faiss().deserialize_index(np.frombuffer(data, np.uint8))
    if vectors.ntotal != len(passages):
        raise ValueError(f"{vectors.ntotal} vectors for {len(passages)} passages")
    return record, passages, vectors


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("retrieval needs FAISS. Run: pip install 'ultragist-rag[retrieval]'") from error
    return faiss


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
