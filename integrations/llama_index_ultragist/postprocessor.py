"""Nodes in, nodes out, each showing a language model the marker of its memory.

Is        a `BaseNodePostprocessor`: the last one behind a retriever (a later one with an LLM would show it markers).
Flow      retriever -> [postprocessor] -> response synthesizer. Imports the front door only.
Change    which nodes are compressed, what is kept with a memory.
Not here  what a node shows to whom -> node.py; looking up, budget, batches -> ultragist_rag.condense.
Holds     one node in, one out, in order, with its id, score, metadata and relationships; inputs stay as they are.
"""

from __future__ import annotations

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode

from llama_index_ultragist.node import GistNode, is_text, reference_of, text_of
from ultragist_rag.components import CondenseFields
from ultragist_rag.condense import condense
from ultragist_rag.errors import InputError
from ultragist_rag.requests import in_thread

__all__ = ["UltraGistPostprocessor"]


class UltraGistPostprocessor(CondenseFields, BaseNodePostprocessor):
    """Turns each text node into a `GistNode` with the marker of its gist memory.

    Memories that the store has are reused, those that `GistTransform` made first of all; all others are compressed
    together and stored with their text, which `store.source(marker)` returns. Look-alikes of markers are made harmless
    in what is compressed and in all that a prompt shows. Nodes with images, sound or video pass as they are.
    """

    by_score: bool = False
    """Whether scores divide `slots` among the nodes (higher is better); else their order does, best first."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "UltraGistPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        texts = [item for item in nodes if is_text(item.node)]
        made = (
            condense(
                self._get_engine(),
                self.store,
                [text_of(item.node) for item in texts],
                policy=self._policy(),
                scores=_scores(texts) if self.by_score else None,
                references=[reference_of(item.node) for item in texts],
                metadata=[item.node.metadata for item in texts],
            )
            if texts
            else []
        )
        markers = iter(made)
        return [
            NodeWithScore(
                node=_gist_node(item.node, next(markers).marker) if is_text(item.node) else item.node, score=item.score
            )
            for item in nodes
        ]

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await in_thread(lambda _: self._postprocess_nodes(nodes, query_bundle))


def _gist_node(node: BaseNode, marker: str | None) -> GistNode:
    fields = {name: getattr(node, name) for name in TextNode.model_fields if name in type(node).model_fields}
    return GistNode(**fields | {"text": text_of(node), "marker": marker})


def _scores(nodes: list[NodeWithScore]) -> list[float]:
    scores = [item.score for item in nodes if item.score is not None]
    if len(scores) < len(nodes):
        raise InputError(
            f"{len(nodes) - len(scores)} of {len(nodes)} nodes have no score to divide the slots by: leave by_score "
            "at False, so that their order does, or put a retriever in front that scores."
        )
    return scores
