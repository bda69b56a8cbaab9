"""LangChain components over gist memories: documents become markers, the model reads the memories behind them."""

from langchain_ultragist.compressor import UltraGistCompressor
from langchain_ultragist.llm import UltraGistLLM

__all__ = ["UltraGistCompressor", "UltraGistLLM"]
