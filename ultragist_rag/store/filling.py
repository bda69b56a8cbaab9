"""Fill a store: compress what is not there yet.

Is        the loop behind `get_or_compress`, one batch of texts at a time.
Flow      shelf, recipes, reports -> [filling] -> store.
Change    the order in which texts are compressed, what is reported.
Not here  ids and recipes of texts -> store.py, recipes.py.
Holds     every memory is stored as soon as its batch is done, so that what fails later loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from ultragist_rag.store.recipes import BATCH, Compressor, repeat
from ultragist_rag.store.reports import StoreProgress
from ultragist_rag.store.shelf import Shelf
from ultragist_rag.store.source import SourceRecord

__all__ = ["fill"]

_log = logging.getLogger(__name__)


def fill(
    shelf: Shelf,
    engine: Compressor,
    records: Sequence[SourceRecord],
    keep_source: bool,
    report: Callable[[StoreProgress], object],
) -> tuple[int, int]:
    """Compress and store the texts of records whose memories are not there.

    Args:
        shelf: Where they are stored.
        engine: What compresses.
        records: Texts with their recipes and ids; the same may come twice.
        keep_source: Whether the records are stored, too.
        report: Called after the look-up, and after each batch.

    Returns:
        How many different ones were there, and how many were not.
    """
    unique = {record.name: record for record in records}
    missing = [record for name, record in unique.items() if not shelf.has(name)]
    missing.sort(key=lambda record: len(record.text))  # texts of one length waste nothing in a batch
    n_hits = len(unique) - len(missing)
    report(StoreProgress(len(unique), n_hits, 0))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        for record, memory in zip(batch, repeat(engine, batch), strict=True):
            shelf.save(memory, record, keep_source)
        report(StoreProgress(len(unique), n_hits, start + len(batch)))
    _log.info("%d of %d texts were stored already, %d compressed", n_hits, len(unique), len(missing))
    return n_hits, len(missing)
