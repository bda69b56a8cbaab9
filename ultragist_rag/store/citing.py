"""Say by name what an answer was read from: ids and metadata beside the scores of memories.

Is        from the memories of a prompt, in order, to what the store knows about each.
Flow      memory, reading -> [citing] -> integrations.
Change    what is told about a source.
Not here  how scores are computed -> memory/attribution.py.
Holds     one entry for each memory of the prompt, in prompt order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store.reading import StoreReader

__all__ = ["cite"]


def cite(store: StoreReader | None, pieces: Sequence[Any], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Put a name and metadata beside the score of each memory of a prompt.

    Args:
        store: The store that the memories are from; None if there is none.
        pieces: The prompt: texts, ids and memories.
        scores: One for each memory, such as `Answer.sources`.

    Returns:
        For each memory `{"id", "score", "metadata"}`: its id in the store, None if it is not from there, and what was
        stored beside its text, nothing if that was not kept.
    """
    cited = []
    for memory, score in zip((one for one in pieces if isinstance(one, GistMemory)), scores, strict=True):
        name = None if store is None else store.id_of(memory)
        record = store.find_source(name) if store is not None and name is not None else None
        cited.append({"id": name, "score": score, "metadata": dict(record.metadata) if record else {}})
    return cited
