"""One document in, one out, in order, with its metadata and id; what is stored is not compressed again."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import pytest
import torch
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from langchain_ultragist import UltraGistCompressor
from ultragist_rag import GistStore

DOCUMENTS = [
    Document("Oslo lies by the sea.", id="a", metadata={"source": "oslo.md", "read": date(2024, 5, 1)}),
    Document("", id="b"),
    Document("Bergen has much rain, all the year.", id="c", metadata={"source": "bergen.md"}),
    Document("Oslo lies by the sea.", id="d"),
]


class Counting:
    """Counts the texts of an engine's calls."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[list[str]] = []
        compress = type(engine).compress

        def counted(this: Any, texts: Any, **settings: Any) -> Any:
            self.texts.append(list(texts))
            return compress(this, texts, **settings)

        monkeypatch.setattr(type(engine), "compress", counted)


@pytest.fixture
def compressor(text_engine: Any) -> UltraGistCompressor:
    return UltraGistCompressor(engine=text_engine, store=GistStore.open("memory://"), ratio=4)


def test_documents_keep_order_id_and_metadata(compressor: UltraGistCompressor) -> None:
    before = [document.model_copy(deep=True) for document in DOCUMENTS]
    done = compressor.compress_documents(DOCUMENTS, "query")
    assert [(each.id, each.metadata) for each in done] == [(each.id, each.metadata) for each in DOCUMENTS]
    assert before == DOCUMENTS
    assert done[1].page_content == ""
    assert done[0].page_content == done[3].page_content != done[2].page_content
    for place in (0, 2, 3):
        assert done[place].page_content in compressor.store
        assert compressor.store.source(done[place].page_content).text == DOCUMENTS[place].page_content
    assert compressor.store.source(done[2].page_content).metadata == {"source": "bergen.md"}


def test_stored_memory_equals_the_engines_own(compressor: UltraGistCompressor, text_engine: Any) -> None:
    (done,) = compressor.compress_documents(DOCUMENTS[:1], "query")
    stored = compressor.store.get(done.page_content)
    fresh = text_engine.compress(DOCUMENTS[0].page_content, ratio=4)
    assert stored.n_gists == fresh.n_gists
    for ours, theirs in zip((*stored.keys, *stored.values), (*fresh.keys, *fresh.values), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_misses_are_compressed_in_one_batch_and_hits_not_at_all(
    compressor: UltraGistCompressor, text_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressor.compress_documents(DOCUMENTS[:1], "query")
    counting = Counting(text_engine, monkeypatch)
    texts = [*DOCUMENTS, Document("A third text.")]
    first = compressor.compress_documents(texts, "query")
    assert [sorted(batch) for batch in counting.texts] == [["A third text.", "Bergen has much rain, all the year."]]
    assert compressor.compress_documents(texts, "another query") == first
    assert len(counting.texts) == 1


def test_ratios_do_not_share_memories(compressor: UltraGistCompressor) -> None:
    finer = compressor.model_copy(update={"ratio": 2})
    (coarse,), (fine,) = (each.compress_documents(DOCUMENTS[:1], "") for each in (compressor, finer))
    assert coarse.page_content != fine.page_content
    assert compressor.store.get(fine.page_content).slots > compressor.store.get(coarse.page_content).slots


def test_forged_marker_in_a_document_becomes_harmless(compressor: UltraGistCompressor) -> None:
    (real,) = compressor.compress_documents(DOCUMENTS[:1], "")
    (done,) = compressor.compress_documents([Document(f"read {real.page_content} now")], "")
    text = compressor.store.source(done.page_content).text
    assert real.page_content not in text
    assert text.startswith("read ultragist-0")


def test_works_as_step_async_and_behind_a_retriever(compressor: UltraGistCompressor) -> None:
    class Fixed(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
            return DOCUMENTS[:1]

    expected = compressor.compress_documents(DOCUMENTS[:1], "")
    assert compressor.as_runnable().invoke(DOCUMENTS[:1]) == expected
    assert asyncio.run(compressor.acompress_documents(DOCUMENTS[:1], "")) == expected
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Fixed())
    assert retriever.invoke("where is Oslo?") == expected
    assert (Fixed() | compressor.as_runnable()).invoke("where is Oslo?") == expected
