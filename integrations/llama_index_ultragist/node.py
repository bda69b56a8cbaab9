"""A text node that shows a language model the marker of its memory, and everybody else its text.

Is        a `TextNode` whose content for `MetadataMode.LLM`, as text or as blocks, is a marker.
Flow      made by the postprocessor, read by response synthesizers. Imports the front door only.
Change    what a prompt shows of a node.
Not here  compressing and looking up -> postprocessor.py; what a marker is -> ultragist_rag.store.
Holds     the marker stands in LLM mode only; text, id, score and hash are those of the plain node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.schema import MetadataMode, TextNode
from pydantic import Field

from ultragist_rag.store import neutralise

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import BaseContentBlock

__all__ = ["GistNode"]


class GistNode(TextNode):
    """A node with the marker of its text's memory.

    Prompts are written with `MetadataMode.LLM` and so get the marker; embedders, evaluators, citations and
    `response.source_nodes` read the text. A document store keeps the text and forgets the marker: it is made anew.
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
            return super().get_content(metadata_mode)
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
            return super().get_content_blocks(metadata_mode)
        texts = [text for text in (self._shown_metadata(), self._shown_text()) if text]
        return [TextBlock(text=text) for text in texts or [""]]

    def set_content(self, value: str) -> None:
        """Replace the text; the marker stood for the old one and goes.

        Args:
            value: The new text.
        """
        super().set_content(value)
        self.marker = None

    def _shown_text(self) -> str:
        return self.marker or neutralise(self.text)

    def _shown_metadata(self) -> str:
        return neutralise(self.get_metadata_str(MetadataMode.LLM).strip())
