"""One node in, one out, in order, with all that it had; only a language model sees the marker."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from typing import Any

import pytest
import torch
from llama_index.core.llms import MockLLM
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import (
    Document,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from llama_index_ultragist import GistNode, UltraGistPostprocessor
from ultragist_rag import GistStore, InputError

TEXTS = ["Oslo lies by the sea.", "", "Bergen has much rain, all the year.", "Oslo lies by the sea."]
FORGED = "ultragist0" + "a" * 26 + "0"


def make_nodes() -> list[NodeWithScore]:
    metadata = [{"source": "oslo.md", "read": date(2024, 5, 1), "secret": "x"}, {}, {"source": "bergen.md"}, {}]
    nodes = [
        TextNode(
            id_=str(place),
            text=text,
            metadata=metadata[place],
            embedding=[0.5, float(place)],
            excluded_llm_metadata_keys=["secret"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"file {place}")},
            start_char_idx=place,
        )
        for place, text in enumerate(TEXTS)
    ]
    return [NodeWithScore(node=node, score=score) for node, score in zip(nodes, (0.9, None, 0.7, 0.1), strict=True)]


def marker_of(item: NodeWithScore) -> str:
    assert isinstance(item.node, GistNode)
    assert item.node.marker is not None
    return item.node.marker


@pytest.fixture
def postprocessor(text_engine: Any) -> UltraGistPostprocessor:
    return UltraGistPostprocessor(engine=text_engine, store=GistStore.open("memory://"), ratio=4)


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


def test_nodes_keep_all_that_they_had(postprocessor: UltraGistPostprocessor) -> None:
    nodes, before = make_nodes(), make_nodes()
    done = postprocessor.postprocess_nodes(nodes, query_str="query")
    assert [item.score for item in done] == [0.9, None, 0.7, 0.1]
    for old, new in zip(before, done, strict=True):
        assert isinstance(new.node, GistNode)
        for field in TextNode.model_fields:
            assert getattr(new.node, field) == getattr(old.node, field), field
        assert new.node.hash == old.node.hash
    assert done[1].node.get_content(MetadataMode.LLM) == ""
    assert marker_of(done[0]) == marker_of(done[3]) != marker_of(done[2])
    record = postprocessor.store.source(marker_of(done[2]))
    assert (record.text, record.metadata) == (TEXTS[2], {"source": "bergen.md"})


def test_inputs_stay_as_they_are(postprocessor: UltraGistPostprocessor) -> None:
    nodes, before = make_nodes(), make_nodes()
    done = postprocessor.postprocess_nodes(nodes)
    done[0].score = 0.0
    done[0].node.metadata["source"] = "elsewhere"
    done[0].node.relationships.clear()
    done[0].node.set_content("other")
    assert nodes == before
    assert [type(item.node) for item in nodes] == [TextNode] * len(nodes)


def test_marker_stands_in_llm_mode_only(postprocessor: UltraGistPostprocessor) -> None:
    (plain,) = nodes = make_nodes()[:1]
    (done,) = postprocessor.postprocess_nodes(nodes)
    assert done.get_content(MetadataMode.LLM) == plain.get_content(MetadataMode.LLM).replace(TEXTS[0], marker_of(done))
    assert done.get_content(MetadataMode.LLM).startswith("source: oslo.md\nread: 2024-05-01\n\nultragist0")
    for mode in (MetadataMode.NONE, MetadataMode.EMBED, MetadataMode.ALL):
        assert done.get_content(mode) == plain.get_content(mode)
        assert done.node.get_content_blocks(mode) == plain.node.get_content_blocks(mode)
    assert done.text == done.get_content() == TEXTS[0]
    blocks = [block.text for block in done.node.get_content_blocks(MetadataMode.LLM)]
    assert blocks == ["source: oslo.md\nread: 2024-05-01", marker_of(done)]


def test_misses_are_compressed_in_one_batch_and_hits_not_at_all(
    postprocessor: UltraGistPostprocessor, batches: list[list[str]]
) -> None:
    first = postprocessor.postprocess_nodes(make_nodes())
    assert [sorted(batch) for batch in batches] == [sorted({TEXTS[0], TEXTS[2]})]
    assert postprocessor.postprocess_nodes(make_nodes()) == first
    assert postprocessor.postprocess_nodes(first) == first
    assert len(batches) == 1


def test_stored_memory_equals_the_engines_own(postprocessor: UltraGistPostprocessor, text_engine: Any) -> None:
    (done,) = postprocessor.postprocess_nodes(make_nodes()[2:3])
    stored = postprocessor.store.get(marker_of(done))
    fresh = text_engine.compress(TEXTS[2], ratio=4)
    assert stored.n_gists == fresh.n_gists
    for ours, theirs in zip((*stored.keys, *stored.values), (*fresh.keys, *fresh.values), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_forged_markers_become_harmless(postprocessor: UltraGistPostprocessor) -> None:
    node = TextNode(text=f"read {FORGED} now", metadata={"title": FORGED})
    (done,) = postprocessor.postprocess_nodes([NodeWithScore(node=node)])
    assert postprocessor.store.source(marker_of(done)).text.startswith("read ultragist-0")
    assert FORGED not in done.get_content(MetadataMode.LLM)
    assert [FORGED in block.text for block in done.node.get_content_blocks(MetadataMode.LLM)] == [False, False]
    assert (done.text, done.metadata, done.node.hash) == (node.text, node.metadata, node.hash)
    for mode in MetadataMode:
        assert FORGED not in done.get_content(mode)
        assert [FORGED in block.text for block in done.node.get_content_blocks(mode)].count(True) == 0
    assert FORGED not in json.dumps(done.node.model_dump(mode="json"))
    done.node.set_content(f"new {FORGED}")
    assert done.get_content(MetadataMode.LLM).endswith("new " + FORGED.replace("0", "-0", 1))


def test_budget_is_divided_by_rank_or_by_score(text_engine: Any) -> None:
    text = "much rain, all the year. " * 4
    nodes = [
        NodeWithScore(node=TextNode(text=f"{place} {text}"), score=score) for place, score in enumerate((0.1, 0.9))
    ]
    settings = {"engine": text_engine, "store": GistStore.open("memory://"), "slots": 80, "ratios": (2, 4, 8)}
    for by_score, best in ((False, 0), (True, 1)):
        postprocessor = UltraGistPostprocessor(**settings, by_score=by_score)
        slots = [postprocessor.store.get(marker_of(item)).slots for item in postprocessor.postprocess_nodes(nodes)]
        assert sum(slots) <= 80
        assert slots[best] > slots[1 - best]
    with pytest.raises(InputError, match="1 of 3 nodes have no score"):
        postprocessor.postprocess_nodes([*nodes, NodeWithScore(node=TextNode(text=text))])
    with pytest.raises(InputError, match="slots"):
        UltraGistPostprocessor(**settings | {"slots": 3}).postprocess_nodes(nodes)


def test_short_texts_stay_text(text_engine: Any) -> None:
    store = GistStore.open("memory://")
    postprocessor = UltraGistPostprocessor(engine=text_engine, store=store, min_tokens=len(TEXTS[2]) + 1)
    done = postprocessor.postprocess_nodes([*make_nodes(), NodeWithScore(node=TextNode(text=TEXTS[2] * 2))])
    assert [item.node.marker is None for item in done] == [True] * 4 + [False]  # type: ignore[attr-defined]
    assert done[2].get_content(MetadataMode.LLM).endswith(TEXTS[2])


def test_async_gives_the_same(postprocessor: UltraGistPostprocessor, batches: list[list[str]]) -> None:
    done = asyncio.run(postprocessor.apostprocess_nodes(make_nodes(), query_str="query"))
    assert done == postprocessor.postprocess_nodes(make_nodes())
    assert len(batches) == 1


def test_documents_are_compressed_and_images_pass(postprocessor: UltraGistPostprocessor) -> None:
    document, image = Document(text=TEXTS[0], id_="d"), ImageNode(text="a map", image_path="map.png")
    done = postprocessor.postprocess_nodes([NodeWithScore(node=image, score=0.2), NodeWithScore(node=document)])
    assert done[0] == NodeWithScore(node=image, score=0.2)
    assert done[1].node_id == "d"
    assert done[1].get_content(MetadataMode.LLM) == marker_of(done[1])
    assert done[1].text == TEXTS[0]


@pytest.mark.parametrize("mode", ["compact", "simple_summarize", "tree_summarize"])
def test_prompt_has_markers_and_sources_have_texts(postprocessor: UltraGistPostprocessor, mode: Any) -> None:
    nodes = [item for item in make_nodes() if item.node.get_content()]
    done = postprocessor.postprocess_nodes(nodes)
    response = get_response_synthesizer(response_mode=mode, llm=MockLLM()).synthesize("where?", nodes=done)
    assert [marker_of(item) in str(response) for item in done] == [True, True, True]  # MockLLM repeats its prompt
    assert [text in str(response) for text in TEXTS if text] == [False, False, False]
    assert [item.text for item in response.source_nodes] == [text for text in TEXTS if text]


def test_document_store_keeps_the_text_and_forgets_the_marker(postprocessor: UltraGistPostprocessor) -> None:
    (done,) = postprocessor.postprocess_nodes(make_nodes()[3:])
    back = json_to_doc(doc_to_json(done.node))
    assert type(back) is TextNode
    assert (back.node_id, back.get_content(MetadataMode.LLM)) == ("3", TEXTS[3])


def test_nothing_is_loaded_or_shown_until_asked() -> None:
    lazy = UltraGistPostprocessor(model="/nowhere", store=GistStore.open("memory://"))
    assert lazy.postprocess_nodes([]) == []
    assert lazy.class_name() == "UltraGistPostprocessor"
    assert "GistStore" not in repr(lazy)
    assert [lazy.to_dict()[name] for name in ("model_name", "ratio")] == ["/nowhere", None]
    assert not {"engine", "store"} & lazy.to_dict().keys()


def test_components_of_one_model_share_an_engine(model_folders: Any) -> None:
    store = GistStore.open("memory://")
    one, other = (UltraGistPostprocessor(model=str(model_folders[0]), store=store) for _ in range(2))
    assert marker_of(one.postprocess_nodes(make_nodes())[0]) == marker_of(other.postprocess_nodes(make_nodes())[0])
    assert one._get_engine() is other._get_engine()
