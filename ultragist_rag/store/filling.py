"""Fill a store: compress what is not there yet.

Is        the loop behind `get_or_compress`, one batch of texts at a time; one is written while the next is compressed.
Flow      shelf, recipes, reports -> [filling] -> store.
Change    the order in which texts are compressed, what is reported.
Not here  ids and recipes of texts -> store.py, recipes.py.
Holds     every memory is stored as soon as its batch is done, so that what fails later loses nothing; no more than one
          batch waits to be written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from ultragist_rag.background import in_background
from ultragist_rag.memory.memory import GistMemory
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
        report: Called after the look-up, and after each batch, when it is stored.

    Returns:
        How many different ones were there, and how many were not.
    """
    unique = {record.name: record for record in records}
    missing = [record for name, record in unique.items() if not shelf.has(name)]
    missing.sort(key=lambda record: len(record.text))  # texts of one length waste nothing in a batch
    n_hits = len(unique) - len(missing)
    report(StoreProgress(len(unique), n_hits, 0))
    saving: Future[int] | None = None
    for start in range(0, len(missing) + BATCH, BATCH):
        batch = missing[start : start + BATCH]
        try:
            memories = repeat(engine, batch) if batch else []
        finally:
            if saving is not None:
                report(StoreProgress(len(unique), n_hits, saving.result()))
        save = partial(_save, shelf, memories, batch, keep_source, start + len(batch))
        saving = in_background(save, "ultragist-store") if batch else None
    _log.info("%d of %d texts were stored already, %d compressed", n_hits, len(unique), len(missing))
    return n_hits, len(missing)


def _save(
    shelf: Shelf, memories: Sequence[GistMemory], records: Sequence[SourceRecord], keep_source: bool, n_done: int
) -> int:
    for memory, record in zip(memories, records, strict=True):
        shelf.save(memory if keep_source else replace(memory, source_ids=None), record, keep_source)
    return n_done
