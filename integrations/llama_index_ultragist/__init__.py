"""LlamaIndex components over gist memories: the reader's prompt gets markers, everything else the texts."""

from llama_index_ultragist.node import GistNode
from llama_index_ultragist.postprocessor import UltraGistPostprocessor

__all__ = ["GistNode", "UltraGistPostprocessor"]
