"""One engine for equal model settings, shared by all components that use it.

Is        a registry of loaded engines; it keeps none alive.
Flow      engine -> [shared] -> components of both frameworks.
Change    what counts as equal settings.
Not here  who may use an engine when -> requests.py.
Holds     equal settings give the same engine, loaded once, also when several threads ask at the same time.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import ref

from ultragist_rag.engine import UltraGist

__all__ = ["EngineHolder", "engine_holder", "shared_engine"]


class _Entry:
    """Settings, and the engine that was loaded with them."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self.settings = (model, options)
        self.loading = threading.Lock()
        self.n_asking = 0
        self.engine: ref[UltraGist] | None = None

    def get(self) -> UltraGist | None:
        return self.engine() if self.engine is not None else None


class EngineHolder:
    """Settings, and their engine from the moment it is needed: what components that are copies of each other share.

    A framework may copy a component for a single call. The original has the same holder, which keeps the engine that
    such a copy loads.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        """Load nothing; `engine_holder` does."""
        self.settings = (model, options)
        self._engine: UltraGist | None = None

    def get(self) -> UltraGist:
        """Return the engine; it is loaded if need be."""
        if self._engine is None:
            model, options = self.settings
            self._engine = shared_engine(model, **options)
        return self._engine


_entries: list[_Entry] = []
_holders: list[ref[EngineHolder]] = []
_lock = threading.Lock()


def engine_holder(model: str, options: dict[str, Any]) -> EngineHolder:
    """Return the holder of an engine, the same one as long as somebody has it; nothing is loaded.

    Args:
        model: As for `shared_engine`.
        options: As for `shared_engine`.

    Returns:
        The holder.
    """
    with _lock:
        living = [(holder, reference) for reference in _holders if (holder := reference()) is not None]
        _holders[:] = [reference for _, reference in living]
        for holder, _ in living:
            if holder.settings == (model, options):
                return holder
        made = EngineHolder(model, dict(options))
        _holders.append(ref(made))
        return made


def shared_engine(model: str, **options: Any) -> UltraGist:
    """Return the engine of a model; it is loaded once and dropped with the last component that uses it.

    Args:
        model: As for `UltraGist.from_pretrained`.
        options: As for `UltraGist.from_pretrained`; those that are equal share an engine.

    Returns:
        The engine. Different ones load at the same time; a call that finds its own loading waits for it.
    """
    with _lock:
        _entries[:] = [entry for entry in _entries if entry.n_asking or entry.get() is not None]
        entry = next((entry for entry in _entries if entry.settings == (model, options)), None)
        if entry is None:
            entry = _Entry(model, dict(options))
            _entries.append(entry)
        entry.n_asking += 1
    try:
        with entry.loading:
            engine = entry.get()
            if engine is None:
                engine = UltraGist.from_pretrained(model, **options)
                entry.engine = ref(engine)
            return engine
    finally:
        with _lock:
            entry.n_asking -= 1
