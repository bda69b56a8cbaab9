"""LlamaIndex components over gist memories: the reader's prompt gets markers, everything else the texts."""

from llama_index_ultragist.llm import UltraGistLLM
from llama_index_ultragist.memory_block import GistMemoryBlock
from llama_index_ultragist.node import GistNode
from llama_index_ultragist.postprocessor import UltraGistPostprocessor
from llama_index_ultragist.tokens import slot_tokenizer
from llama_index_ultragist.transform import GistTransform

__all__ = [
    "GistMemoryBlock",
    "GistNode",
    "GistTransform",
    "UltraGistLLM",
    "UltraGistPostprocessor",
    "slot_tokenizer",
]
