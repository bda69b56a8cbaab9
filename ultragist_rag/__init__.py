"""UltraGist for retrieval: documents as gist memories, answers from them.

Importing this package imports neither torch nor transformers; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultragist_rag.config import GistConfig
    from ultragist_rag.engine import ForwardOutput, UltraGist
    from ultragist_rag.errors import (
        CheckpointError,
        ConfigError,
        ContextOverflowError,
        CorruptGistError,
        GistNotFoundError,
        InputError,
        MemoryMismatchError,
        QueueFullError,
        RequestTimeoutError,
        StoreError,
        TrainingError,
        UltraGistError,
        UnsupportedModelError,
    )
    from ultragist_rag.memory.memory import GistMemory, Progress, Segment
    from ultragist_rag.session import GistSession
    from ultragist_rag.store import GistStore

__version__ = "0.1.0"

_HOMES = {
    "GistConfig": "config",
    "GistMemory": "memory.memory",
    "Progress": "memory.memory",
    "Segment": "memory.memory",
    "GistSession": "session",
    "GistStore": "store",
    "ForwardOutput": "engine",
    "UltraGist": "engine",
}

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextOverflowError",
    "CorruptGistError",
    "ForwardOutput",
    "GistConfig",
    "GistMemory",
    "GistNotFoundError",
    "GistSession",
    "GistStore",
    "InputError",
    "MemoryMismatchError",
    "Progress",
    "QueueFullError",
    "RequestTimeoutError",
    "Segment",
    "StoreError",
    "TrainingError",
    "UltraGist",
    "UltraGistError",
    "UnsupportedModelError",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
