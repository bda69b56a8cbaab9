"""A LlamaIndex query engine whose LLM reads memories instead of text: one postprocessor more, and our LLM.

    pip install '.[llama-index,retrieval]'
    python examples/04_llama_index_query.py                              # the texts of examples/corpus
    python examples/04_llama_index_query.py my-texts "What is it about?"

The source nodes of an answer hold the texts as they were; markers stand in the prompt only.
"""

import sys
from pathlib import Path

try:
    from llama_index.core import PromptTemplate, VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.schema import TextNode

    from llama_index_ultragist import UltraGistLLM, UltraGistPostprocessor
    from ultragist_rag import GistStore
    from ultragist_rag.rag import HashingEmbeddings, read_passages
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[llama-index,retrieval]'") from error

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus"
questions = sys.argv[2:] or ["What is the capital of Mongolia?", "What is the currency of Norway?"]
words = HashingEmbeddings()


class WordEmbedding(BaseEmbedding):
    """Hashed words in place of an embedding model: needs no network. Use your own."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return words.embed_query(text).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return words.embed_query(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


passages = read_passages(folder)
words.fit([passage.text for passage in passages])
nodes = [TextNode(text=p.text, metadata={"file": p.source}, excluded_llm_metadata_keys=["file"]) for p in passages]
index = VectorStoreIndex(nodes, embed_model=WordEmbedding())

store = GistStore.open("gists")  # kept in this folder: what was compressed in one run is reused in the next
engine = index.as_query_engine(
    llm=UltraGistLLM(store=store, max_tokens=24, is_chat_model=False),  # reads the memories behind markers
    node_postprocessors=[UltraGistPostprocessor(store=store, ratio=4)],  # shows the LLM a marker for each node
    text_qa_template=PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:"),
    similarity_top_k=3,
)
for question in questions:
    response = engine.query(question)
    print(f"\n{question}\n  {response.response.strip()}")
    for item in response.source_nodes:
        print(f"  {item.score:.2f} {item.metadata['file']}: {item.text.splitlines()[2]}")
