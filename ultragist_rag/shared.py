"""One engine per model, shared by the components of both frameworks that use it."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from ultragist_rag.engine import UltraGist

_engines: WeakValueDictionary[str, UltraGist] = WeakValueDictionary()
_lock = threading.Lock()


def shared_engine(model: str) -> UltraGist:
    """Return the engine of a model; it is loaded once and dropped with the last component that uses it."""
    with _lock:
        engine = _engines.get(model)
        if engine is None:
            engine = _engines[model] = UltraGist.from_pretrained(model)
        return engine
