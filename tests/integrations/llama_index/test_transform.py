"""Ingestion writes down which memory is whose, and changes nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, ImageNode, MetadataMode, TextNode

from llama_index_ultragist import GistMemoryBlock, GistNode, GistTransform, UltraGistPostprocessor
from ultragist_rag import GistStore, InputError
from ultragist_rag.store import parse_marker, to_marker

KEY = "ultragist_id"


@pytest.fixture
def transform(text_engine: Any, store: GistStore) -> GistTransform:
    return GistTransform(engine=text_engine, store=store, ratio=4)


@pytest.fixture
def batches(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each call of the engine's `compress`."""
    calls: list[list[str]] = []
    compress = type(text_engine).compress

    def counted(this: Any, texts: Any, **settings: Any) -> Any:
        calls.append(list(texts))
        return compress(this, texts, **settings)

    monkeypatch.setattr(type(text_engine), "compress", counted)
    return calls


def make_nodes(texts: list[str]) -> list[TextNode]:
    return [TextNode(text=text, id_=str(place), metadata={"page": place}) for place, text in enumerate(texts)]


def test_one_key_is_written_and_nobody_is_shown_it(transform: GistTransform, texts: list[str]) -> None:
    nodes, before = make_nodes(texts), make_nodes(texts)
    done = transform(nodes)
    assert nodes == before
    for old, new in zip(before, done, strict=True):
        assert parse_marker(new.metadata[KEY]) == new.metadata[KEY]
        assert transform.store.source(new.metadata[KEY]).text == old.text
        for mode in (MetadataMode.NONE, MetadataMode.EMBED, MetadataMode.LLM):
            assert new.get_content(mode) == old.get_content(mode)
        plain = {"metadata": old.metadata, "excluded_embed_metadata_keys": [], "excluded_llm_metadata_keys": []}
        assert new.model_copy(update=plain) == old
    assert transform(done) == done


def test_what_has_no_memory_gets_no_key(transform: GistTransform, store: GistStore, texts: list[str]) -> None:
    short = GistTransform(engine=transform.engine, store=store, min_tokens=1000)
    stale = short(transform(make_nodes(texts)))
    assert [KEY in node.metadata for node in stale] == [False, False]
    image = ImageNode(text="a map", image_path="map.png")
    empty = TextNode(text=" ")
    assert transform([image, empty]) == [image, empty]
    assert transform([]) == []


def test_the_postprocessor_uses_what_ingestion_made(
    transform: GistTransform, texts: list[str], batches: list[list[str]]
) -> None:
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), transform])
    nodes = pipeline.run(documents=[Document(text=text) for text in texts])
    index = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))
    assert len(batches) == 1
    postprocessor = UltraGistPostprocessor(engine=transform.engine, store=transform.store)
    done = postprocessor.postprocess_nodes(index.as_retriever().retrieve("Where?"))
    assert len(batches) == 1
    for item in done:
        assert isinstance(item.node, GistNode)
        assert item.node.get_content(MetadataMode.LLM) == to_marker(item.node.metadata[KEY])
    assert sorted(item.text for item in done) == sorted(texts)


def test_a_hit_of_the_ingestion_cache_over_a_cold_store_is_made_good(
    transform: GistTransform, texts: list[str], batches: list[list[str]]
) -> None:
    cache = IngestionCache()
    documents = [Document(text=text, id_=text) for text in texts]
    first = IngestionPipeline(transformations=[transform], cache=cache).run(documents=documents)
    again = IngestionPipeline(transformations=[transform], cache=cache).run(documents=documents)
    assert len(batches) == 1
    assert [node.metadata for node in again] == [node.metadata for node in first]
    for node in first:
        transform.store.delete(node.metadata[KEY])
    postprocessor = UltraGistPostprocessor(engine=transform.engine, store=transform.store, ratio=4)
    done = postprocessor.postprocess_nodes(
        VectorStoreIndex(again, embed_model=MockEmbedding(embed_dim=4)).as_retriever().retrieve("?")
    )
    assert len(batches) == 2
    assert {item.node.marker for item in done} == {to_marker(node.metadata[KEY]) for node in first}  # type: ignore[attr-defined]


def test_the_ingestion_cache_tells_settings_apart(text_engine: Any, store: GistStore, texts: list[str]) -> None:
    cache = IngestionCache()
    seen = [
        GistTransform(engine=text_engine, store=store, ratio=4),
        GistTransform(engine=text_engine, store=store, ratio=8),
        GistTransform(engine=text_engine, store=store, ratio=8, min_tokens=1000),
        GistTransform(engine=text_engine, store=store, ratio=8, verbatim="regex"),
        GistTransform(engine=text_engine, store=GistStore.open("memory://", namespace="other"), ratio=4),
    ]
    documents = [Document(text=text) for text in texts]
    ids = [
        [
            node.metadata.get(KEY)
            for node in IngestionPipeline(transformations=[one], cache=cache).run(documents=documents)
        ]
        for one in seen
    ]
    assert len({tuple(row) for row in ids}) == len(seen)
    assert not {"engine", "store"} & seen[0].to_dict().keys()


def test_a_reference_of_somebody_else_is_not_believed(
    transform: GistTransform, text_engine: Any, texts: list[str]
) -> None:
    (other,) = transform([TextNode(text="The salary of the director is one million.")])
    forged = TextNode(text=texts[0], metadata={KEY: other.metadata[KEY]})
    postprocessor = UltraGistPostprocessor(engine=text_engine, store=transform.store, ratio=4)
    from llama_index.core.schema import NodeWithScore

    (done,) = postprocessor.postprocess_nodes([NodeWithScore(node=forged)])
    assert transform.store.source(done.node.marker).text == texts[0]  # type: ignore[attr-defined]
    assert transform([forged])[0].metadata[KEY] != other.metadata[KEY]


async def test_async_gives_the_same(transform: GistTransform, texts: list[str], batches: list[list[str]]) -> None:
    done = await transform.acall(make_nodes(texts))
    assert done == transform(make_nodes(texts))
    assert len(batches) == 1


def test_worker_processes_are_refused(transform: GistTransform) -> None:
    with pytest.raises(InputError, match="num_workers"):
        pickle.dumps(transform)


@pytest.mark.parametrize("component", [GistMemoryBlock, GistTransform, UltraGistPostprocessor])
def test_misspelt_settings_are_refused(component: Any, store: GistStore) -> None:
    with pytest.raises(ValueError, match="ration"):
        component(store=store, ration=4)


def test_nothing_is_loaded_until_asked(store: GistStore) -> None:
    lazy = GistTransform(model="/nowhere", store=store)
    assert lazy([]) == []
    assert "GistStore" not in repr(lazy)
    assert lazy.to_dict()["model_name"] == "/nowhere"
