"""A LlamaIndex ingestion pipeline that compresses: split, compress, embed. A second run takes all from its cache.

    pip install '.[llama-index,retrieval]'
    python examples/05_llama_index_ingestion.py             # the texts of examples/corpus
    python examples/05_llama_index_ingestion.py my-texts    # .md files, cut at their headings

Memories are kept in ./gists, the cache of the pipeline in ./pipeline.
"""

import sys
from pathlib import Path

try:
    from llama_index.core import Document, PromptTemplate, VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.node_parser import MarkdownNodeParser

    from llama_index_ultragist import GistTransform, UltraGistLLM, UltraGistPostprocessor
    from ultragist_rag import GistStore
    from ultragist_rag.rag import HashingEmbeddings, read_folder
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[llama-index,retrieval]'") from error

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus"
words = HashingEmbeddings(dims=1024)


class WordEmbedding(BaseEmbedding):
    """Hashed words in place of an embedding model: needs no network. Use your own."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return words.embed_query(text).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return words.embed_query(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


store, embedding = GistStore.open("gists"), WordEmbedding()
pipeline = IngestionPipeline(transformations=[MarkdownNodeParser(), GistTransform(store=store, ratio=4), embedding])
if Path("pipeline").is_dir():
    pipeline.load("pipeline")
nodes = pipeline.run(documents=[Document(text=text, id_=name) for name, text in read_folder(folder)])
pipeline.persist("pipeline")
print(f"{len(nodes)} nodes, {store.stats().n_misses} compressed; the first: {nodes[0].metadata}")

# What was compressed at ingestion is found by the id in a node's metadata: nothing is compressed for a question.
engine = VectorStoreIndex(nodes, embed_model=embedding).as_query_engine(
    llm=UltraGistLLM(store=store, max_tokens=24, is_chat_model=False),
    node_postprocessors=[UltraGistPostprocessor(store=store)],
    text_qa_template=PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:"),
)
for question in ["What is the capital of Mongolia?", "What is the currency of Norway?"]:
    response = engine.query(question)
    files = {item.node.ref_doc_id for item in response.source_nodes}
    print(f"{question} {response.response.strip()} [{', '.join(sorted(files))}]")
