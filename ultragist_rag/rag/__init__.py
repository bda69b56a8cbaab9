"""What retrieval needs around the memories: read files, cut them into passages, find the passages of a question."""

from ultragist_rag.rag.embeddings import Embeddings, HashingEmbeddings, load_embeddings
from ultragist_rag.rag.files import Passage, read_folder, read_passages
from ultragist_rag.rag.index import PassageIndex

__all__ = [
    "Embeddings",
    "HashingEmbeddings",
    "Passage",
    "PassageIndex",
    "load_embeddings",
    "read_folder",
    "read_passages",
]
