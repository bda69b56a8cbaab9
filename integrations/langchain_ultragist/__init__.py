"""LangChain components over gist memories: documents become markers, the model reads the memories behind them.

Importing this package imports neither torch nor LangChain; the names below are loaded when first used. Only
`UltraGistHistoryMiddleware` needs the package `langchain`, all others `langchain-core`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_ultragist.chat import ChatUltraGist
    from langchain_ultragist.compressor import UltraGistCompressor
    from langchain_ultragist.expand import expand_markers
    from langchain_ultragist.history import UltraGistHistoryMiddleware
    from langchain_ultragist.llm import UltraGistLLM

_HOMES = {
    "ChatUltraGist": "chat",
    "UltraGistCompressor": "compressor",
    "UltraGistHistoryMiddleware": "history",
    "UltraGistLLM": "llm",
    "expand_markers": "expand",
}

__all__ = ["ChatUltraGist", "UltraGistCompressor", "UltraGistHistoryMiddleware", "UltraGistLLM", "expand_markers"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
