"""A LangChain chain (LCEL): retriever, compressor, prompt, chat model. Only the compressor is new in it.

    pip install '.[langchain,retrieval]'
    python examples/02_langchain_chain.py             # the texts of examples/corpus
    python examples/02_langchain_chain.py my-texts "What is it about?"

Memories are kept in ./gists: what was compressed in one run is reused in the next.
"""

import sys
from pathlib import Path

try:
    from langchain_core.documents import Document
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
    from langchain_core.vectorstores import InMemoryVectorStore

    from langchain_ultragist import ChatUltraGist, UltraGistCompressor
    from ultragist_rag import GistStore
    from ultragist_rag.rag import HashingEmbeddings, read_passages
except ImportError as error:
    raise SystemExit(f"{error.name} is missing. Run: pip install 'ultragist-rag[langchain,retrieval]'") from error

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus"
questions = sys.argv[2:] or ["What is the capital of Mongolia?", "What is the currency of Norway?"]

# Any retriever will do. This one needs no network: words are hashed, and weighed by how rare they are.
documents = [Document(passage.text, metadata={"source": passage.source}) for passage in read_passages(folder)]
embeddings = HashingEmbeddings()
embeddings.fit([document.page_content for document in documents])
vectors = InMemoryVectorStore(embeddings)
vectors.add_documents(documents)
retriever = vectors.as_retriever(search_kwargs={"k": 3})

store = GistStore.open("gists")  # a folder
compressor = UltraGistCompressor(store=store, ratio=4)  # a document's text becomes a marker, one word
chat = ChatUltraGist(store=store, max_tokens=24)  # reads the memories behind the markers
prompt = ChatPromptTemplate([("system", "{context}"), ("human", "{question}")])


def fill(found: dict) -> dict:
    """Write the markers where the texts would stand."""
    return {**found, "context": "\n\n".join(document.page_content for document in found["documents"])}


chain = RunnableParallel(
    documents=retriever | compressor.as_runnable(),
    question=RunnablePassthrough(),
).assign(answer=RunnableLambda(fill) | prompt | chat)

for result in chain.batch(questions):
    usage = result["answer"].usage_metadata
    slots = usage["input_token_details"]["cache_read"]
    print(f"\n{result['question']}\n  {result['answer'].text.strip()}")
    print(f"  from {', '.join(sorted({document.metadata['source'] for document in result['documents']}))}")
    print(f"  {usage['input_tokens']} tokens read, {slots} of them memory slots")
