"""Where memories are kept: `GistStore` in front, byte stores behind it. The byte stores import no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultragist_rag.store.refs import neutralise
    from ultragist_rag.store.reports import StoreProgress, StoreStats
    from ultragist_rag.store.source import SourceRecord
    from ultragist_rag.store.store import GistStore

_HOMES = {"GistStore": "store", "SourceRecord": "source", "StoreProgress": "reports", "StoreStats": "reports"}

__all__ = ["GistStore", "SourceRecord", "StoreProgress", "StoreStats", "neutralise"]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'refs')}"), name)
