"""One document in, one out, in order, with its metadata and id; what is stored is not compressed again."""

from __future__ import annotations

import json
import threading
from datetime import date
from typing import Any

import pytest
import torch
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda

from langchain_ultragist import UltraGistCompressor
from ultragist_rag import GistStore, InputError
from ultragist_rag.store import parse_marker

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
    assert [each.id for each in done] == [each.id for each in DOCUMENTS]
    for document, each in zip(DOCUMENTS, done, strict=True):
        reference = {"ultragist_id": parse_marker(each.page_content)} if document.page_content else {}
        assert each.metadata == document.metadata | reference
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


def test_what_is_compressed_already_passes_as_it_is(
    compressor: UltraGistCompressor, text_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = compressor.compress_documents(DOCUMENTS, "")
    counting = Counting(text_engine, monkeypatch)
    assert compressor.compress_documents(once, "") == once
    assert counting.texts == []
    (lost,) = compressor.compress_documents([Document(once[0].page_content)], "")  # no reference: only looks like one
    assert compressor.store.source(lost.page_content).text.startswith("ultragist-0")


def test_text_of_another_document_is_not_taken_for_the_one_referred_to(compressor: UltraGistCompressor) -> None:
    first, _, second, _ = compressor.compress_documents(DOCUMENTS, "")
    mixed = Document(DOCUMENTS[2].page_content, metadata={"ultragist_id": first.metadata["ultragist_id"]})
    (done,) = compressor.compress_documents([mixed], "")
    assert done.page_content == second.page_content
    assert done.metadata == {"ultragist_id": parse_marker(second.page_content)}


def test_short_texts_stay_text_without_look_alikes_and_without_reference(compressor: UltraGistCompressor) -> None:
    careful = compressor.model_copy(update={"min_tokens": 30})
    short = [Document("Oslo.", metadata={"ultragist_id": "a" * 26}), Document("ultragist0 is a word")]
    documents = [*short, DOCUMENTS[2]]
    done = careful.compress_documents(documents, "")
    assert [each.page_content for each in done[:2]] == ["Oslo.", "ultragist-0 is a word"]
    assert done[0].metadata == {}
    assert done[2].page_content in compressor.store


def slots_of(compressor: UltraGistCompressor, documents: list[Document]) -> list[int]:
    done = compressor.compress_documents(documents, "")
    return [compressor.store.get(each.page_content).slots for each in done]


def scored(*scores: float) -> list[Document]:
    """Documents of equal length."""
    texts = (f"The town of {name} lies far from here, they say. " * 2 for name in ("Ausi", "Bela", "Cera", "Dona"))
    return [Document(text, metadata={"score": score}) for text, score in zip(texts, scores, strict=False)]


def test_budget_is_divided_by_rank_or_by_score(text_engine: Any) -> None:
    def compressor(**settings: Any) -> UltraGistCompressor:
        return UltraGistCompressor(engine=text_engine, store=GistStore.open("memory://"), slots=110, **settings)

    documents = scored(0.1, 0.2, 0.9)
    by_rank = slots_of(compressor(), documents)
    assert by_rank == sorted(by_rank, reverse=True)
    assert len(set(by_rank)) > 1
    assert sum(by_rank) <= 110
    by_score = slots_of(compressor(score_key="score"), documents)
    assert by_score == sorted(by_score)
    assert len(set(by_score)) > 1
    assert sum(by_score) <= 110
    by_distance = slots_of(compressor(score_key="score", score_order="lower"), documents)
    assert by_distance == sorted(by_distance, reverse=True)
    assert slots_of(compressor(score_key="score", score_order="lower"), scored(-0.1, -0.2, -0.9)) == by_score


def test_nearly_equal_distances_give_equal_shares(text_engine: Any) -> None:
    compressor = UltraGistCompressor(
        engine=text_engine, store=GistStore.open("memory://"), slots=80, score_key="score", score_order="lower"
    )
    assert len(set(slots_of(compressor, scored(0.300, 0.301, 0.302)))) == 1


@pytest.mark.parametrize("score", [None, "high", float("nan")])
def test_scores_that_are_no_numbers_are_refused(compressor: UltraGistCompressor, score: Any) -> None:
    wanting = UltraGistCompressor(engine=compressor.engine, store=compressor.store, slots=99, score_key="score")
    with pytest.raises(InputError):
        wanting.compress_documents(scored(0.5, score), "")


def test_settings_that_exclude_each_other_are_refused_at_once(compressor: UltraGistCompressor) -> None:
    with pytest.raises(ValueError, match="budget"):
        UltraGistCompressor(store=compressor.store, ratio=4, slots=100)
    with pytest.raises(ValueError, match="store"):
        UltraGistCompressor()


class Fixed(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return DOCUMENTS[:1]


def test_misspelt_settings_and_bare_texts_are_refused(compressor: UltraGistCompressor) -> None:
    with pytest.raises(ValueError, match="min_token"):
        UltraGistCompressor(store=compressor.store, min_token=3)
    with pytest.raises(InputError, match=r"str .* Document\("):
        compressor.compress_documents(["a text"], "")  # type: ignore[list-item]


async def test_works_as_step_async_and_behind_a_retriever(compressor: UltraGistCompressor) -> None:
    expected = compressor.compress_documents(DOCUMENTS[:1], "")
    assert compressor.as_runnable().invoke(DOCUMENTS[:1]) == expected
    assert await compressor.acompress_documents(DOCUMENTS[:1], "") == expected
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Fixed())
    assert retriever.invoke("where is Oslo?") == expected
    assert await retriever.ainvoke("where is Oslo?") == expected
    assert (Fixed() | compressor.as_runnable()).invoke("where is Oslo?") == expected
    pipeline = DocumentCompressorPipeline(transformers=[compressor])
    assert pipeline.compress_documents(DOCUMENTS[:1], "") == expected
    assert compressor.compress_documents([], "") == []


async def test_event_loop_is_not_kept_busy(
    compressor: UltraGistCompressor, text_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    compress = type(text_engine).compress
    monkeypatch.setattr(
        type(text_engine),
        "compress",
        lambda *args, **settings: (threads.append(threading.get_ident()), compress(*args, **settings))[1],
    )
    await compressor.acompress_documents(DOCUMENTS[:1], "")
    await compressor.as_runnable().ainvoke(DOCUMENTS[2:3])
    assert len(threads) == 2
    assert threading.get_ident() not in threads


class Recording(BaseCallbackHandler):
    def __init__(self) -> None:
        self.runs: dict[Any, tuple[str, Any]] = {}
        self.events: list[tuple[str, Any, Any]] = []
        self.errors: list[BaseException] = []

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: Any, **more: Any) -> None:
        self.runs[run_id] = ("retriever", more.get("parent_run_id"))

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **more: Any) -> None:
        self.runs[run_id] = (more["name"], more.get("parent_run_id"))

    def on_chain_error(self, error: BaseException, **more: Any) -> None:
        self.errors.append(error)

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, **more: Any) -> None:
        self.events.append((name, data, run_id))


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_callbacks_see_a_run_within_the_retrievers_and_what_it_did(
    compressor: UltraGistCompressor, how: str
) -> None:
    seen = Recording()
    documents = [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[3]]
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=RunnableLambda(lambda query: documents)
    )
    config: Any = {"callbacks": [seen]}
    await retriever.ainvoke("where?", config) if how == "async" else retriever.invoke("where?", config)
    ((run_id, parent),) = [(run, parent) for run, (name, parent) in seen.runs.items() if name == "UltraGistCompressor"]
    assert seen.runs[parent][0] == "retriever"
    n_tokens = 2 * compressor.store.get(compressor.compress_documents(documents, "")[0].page_content).n_source_tokens
    assert seen.events == [("ultragist_condensed", {"n_documents": 3, "n_memories": 1, "n_tokens": n_tokens}, run_id)]


def test_callbacks_see_errors_and_come_from_the_chain_too(compressor: UltraGistCompressor) -> None:
    seen = Recording()
    wanting = compressor.model_copy(update={"score_key": "score"})
    with pytest.raises(InputError):
        wanting.compress_documents(DOCUMENTS, "", callbacks=[seen])
    assert [type(error) for error in seen.errors] == [InputError]
    chain = RunnableLambda(lambda documents: compressor.compress_documents(documents, ""))
    chain.invoke(DOCUMENTS[:1], {"callbacks": [seen]})
    assert [name for name, *_ in seen.events] == ["ultragist_condensed"]


def test_batch_from_threads_equals_one_after_the_other(compressor: UltraGistCompressor) -> None:
    batches = [[Document(f"Town {number} has {number % 3} rivers.")] for number in range(12)]
    expected = [compressor.compress_documents(batch, "") for batch in batches]
    other = compressor.model_copy(update={"store": GistStore.open("memory://")})
    done = other.as_runnable().batch(batches, {"max_concurrency": 4})
    texts = [other.store.source(documents[0].page_content).text for documents in done]
    assert texts == [documents[0].page_content for documents in batches]
    for ours, theirs in zip(done, expected, strict=True):
        (left, right) = (
            where.get(each[0].page_content) for where, each in ((other.store, ours), (compressor.store, theirs))
        )
        torch.testing.assert_close(left.keys[0], right.keys[0])


def test_neither_store_nor_engine_nor_tensors_are_traced(compressor: UltraGistCompressor) -> None:
    assert "store" not in repr(compressor) + str(compressor.model_dump())
    assert "engine" not in repr(compressor) + str(compressor.model_dump())
    (done,) = compressor.compress_documents(DOCUMENTS[2:3], "")
    assert json.loads(dumps(done))["kwargs"]["metadata"] == done.metadata
