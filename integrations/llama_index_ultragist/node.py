"""A text node that shows a language model the marker of its memory, and everybody else its text.

Is        a `TextNode` whose content for `MetadataMode.LLM`, as text or as blocks, is a marker.
Flow      made by the postprocessor, read by response synthesizers. Imports the front door only.
Change    what a prompt shows of a node, which nodes a memory can stand for.
Not here  compressing and looking up -> postprocessor.py; what a marker is -> ultragist_rag.store.
Holds     the marker stands in LLM mode only; fields and hash are those of the plain node; nothing that the node shows
          or writes out holds a look-alike of a marker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, Node, TextNode
from pydantic import Field, field_serializer

from ultragist_rag.condense import REFERENCE
from ultragist_rag.store import neutralise

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import BaseContentBlock

__all__ = ["GistNode", "is_text", "reference_of", "text_of"]


class GistNode(TextNode):
    """A node with the marker of its text's memory.

    Prompts are written with `MetadataMode.LLM` and so get the marker; embedders, evaluators, citations and
    `response.source_nodes` read the text. The fields are those of the plain node. What is shown or written out of them
    has look-alikes of markers made harmless, since prompts are made of that too: the citation engine writes plain nodes
    of dumped ones. A document store keeps the text and forgets the marker: it is found or made again.
    """

    marker: str | None = Field(default=None, exclude=True)
    """Stands for the text in prompts; None shows the text itself, with look-alikes of markers made harmless."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex knows the class."""
        return "GistNode"

    def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> str:
        """Return the node as one text.

        Args:
            metadata_mode: Who reads it; LLM gets the marker, all others the text.

        Returns:
            Marker or text, set into the node's template together with the metadata meant for this reader.
        """
        if metadata_mode != MetadataMode.LLM:
            return neutralise(super().get_content(metadata_mode))
        metadata = self._shown_metadata()
        if not metadata:
            return self._shown_text()
        return self.text_template.format(content=self._shown_text(), metadata_str=metadata).strip()

    def get_content_blocks(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> list[BaseContentBlock]:
        """Return the node as blocks of a chat message.

        Args:
            metadata_mode: Who reads them; LLM gets the marker, all others the text.

        Returns:
            A block of metadata, if there is any for this reader, and one of marker or text.
        """
        from llama_index.core.base.llms.types import TextBlock

        if metadata_mode != MetadataMode.LLM:
            blocks = super().get_content_blocks(metadata_mode)
            return [TextBlock(text=neutralise(one.text)) if isinstance(one, TextBlock) else one for one in blocks]
        texts = [text for text in (self._shown_metadata(), self._shown_text()) if text]
        return [TextBlock(text=text) for text in texts or [""]]

    def set_content(self, value: str) -> None:
        """Replace the text; the marker stood for the old one and goes.

        Args:
            value: The new text.
        """
        super().set_content(value)
        self.marker = None

    @field_serializer("text", "metadata")
    def _written(self, value: Any) -> Any:
        return _harmless(value)

    def _shown_text(self) -> str:
        return self.marker or neutralise(self.text)

    def _shown_metadata(self) -> str:
        return neutralise(self.get_metadata_str(MetadataMode.LLM).strip())


def is_text(node: BaseNode) -> bool:
    """Say whether a node is text and nothing else, so that a memory can stand for it."""
    if isinstance(node, Node):
        return not (node.image_resource or node.audio_resource or node.video_resource)
    return isinstance(node, TextNode) and not isinstance(node, ImageNode)


def text_of(node: BaseNode) -> str:
    """Return the text of a node, as it was read."""
    return node.text if isinstance(node, TextNode) else node.get_content()


def reference_of(node: BaseNode) -> str | None:
    """Return the id of the memory that a node names, if it names one."""
    named = node.marker if isinstance(node, GistNode) and node.marker else node.metadata.get(REFERENCE)
    return named if isinstance(named, str) else None


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return neutralise(value)
    if isinstance(value, dict):
        return {_harmless(key): _harmless(item) for key, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list | tuple) else value
