"""What retrieval needs around the memories: read files, cut them into chunks, find the chunks of a question."""

from ultragist_rag.rag.embeddings import Embeddings, HashingEmbeddings, load_embeddings
from ultragist_rag.rag.files import read_folder
from ultragist_rag.rag.index import ChunkIndex
from ultragist_rag.rag.splitting import Chunk, split_text

__all__ = ["Chunk", "ChunkIndex", "Embeddings", "HashingEmbeddings", "load_embeddings", "read_folder", "split_text"]
