"""Nodes in, nodes out, each showing a language model the marker of its memory.

Is        a `BaseNodePostprocessor`: the last one behind a retriever (a later one with an LLM would show it markers).
Flow      retriever -> [postprocessor] -> response synthesizer. Imports the front door only.
Change    which nodes are compressed, what is kept with a memory.
Not here  what a node shows to whom -> node.py; looking up, ids, files, eviction -> ultragist_rag.store.
Holds     one node in, one out, in order, with its id, score, metadata and relationships; inputs stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore, QueryBundle, TextNode
from pydantic import ConfigDict, Field, PrivateAttr

from llama_index_ultragist.node import GistNode
from ultragist_rag import GistStore, UltraGist
from ultragist_rag.shared import shared_engine
from ultragist_rag.store import neutralise

__all__ = ["UltraGistPostprocessor"]


class UltraGistPostprocessor(BaseNodePostprocessor):
    """Turns each text node into a `GistNode` with the marker of its gist memory.

    Memories that the store has are reused; all others are compressed together and stored with their text, which
    `store.source(marker)` returns. Look-alikes of markers are made harmless in what is compressed and in the metadata
    that a prompt shows. Nodes with images, sound or video pass as they are, without these two.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    store: GistStore = Field(exclude=True, repr=False)
    """Where memories are kept; whatever reads the markers needs one of the same place and namespace."""

    model: str = "bundled"
    """What `UltraGist.from_pretrained` loads at first use; not used if `engine` is given."""

    engine: UltraGist | None = Field(default=None, exclude=True, repr=False)
    """A loaded engine, used instead of `model`."""

    ratio: int | None = None
    """Raw tokens per gist token; None takes the ratio of the model's config."""

    _loaded: UltraGist | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "UltraGistPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = {place: item.node.get_content() for place, item in enumerate(nodes) if _is_text(item.node)}
        full = {place: text for place, text in texts.items() if text.strip()}
        markers: dict[int, str] = {}
        if full:
            found = self.store.get_or_compress(
                self._engine(),
                [neutralise(text) for text in full.values()],
                ratio=self.ratio,
                metadata=[_plain(nodes[place].node.metadata) for place in full],
            )
            markers = dict(zip(full, found, strict=True))
        return [
            NodeWithScore(
                node=_gist_node(item.node, texts[place], markers.get(place)) if place in texts else item.node,
                score=item.score,
            )
            for place, item in enumerate(nodes)
        ]

    def _engine(self) -> UltraGist:
        if self._loaded is None:
            self._loaded = self.engine or shared_engine(self.model)
        return self._loaded


def _is_text(node: BaseNode) -> bool:
    if isinstance(node, Node):
        return not (node.image_resource or node.audio_resource or node.video_resource)
    return isinstance(node, TextNode) and not isinstance(node, ImageNode)


def _gist_node(node: BaseNode, text: str, marker: str | None) -> GistNode:
    fields = {name: getattr(node, name) for name in TextNode.model_fields if name in type(node).model_fields}
    return GistNode(**fields | {"text": text, "marker": marker})


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can carry."""
    kept = {}
    for name, value in metadata.items():
        try:
            kept[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return kept
