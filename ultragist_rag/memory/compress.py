"""Condense documents into memories, all in one ragged batch.

Is        the loop over windows that every document takes in lock step, one forward of the model for each window.
Flow      layout, modeling -> [memory] -> engine, training.
Paper     UltraGist, arXiv 2405.16635, section 3; flushing, lead tokens and ragged batches are ours.
Change    when a window begins and ends, what stays of an open one.
Not here  the authors' stream, with its ratio policies and logits -> forward.py; texts and tokenizers -> engine.py.
Holds     compressing a, then b, equals compressing a + b, for every cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.layout.planner import Step, append_step, flush_reach, interleave_step, interleaved_rows
from ultragist_rag.layout.slots import SINK, SlotTable
from ultragist_rag.memory.memory import GistMemory, Progress
from ultragist_rag.memory.segments import segments_of, table_of
from ultragist_rag.memory.windows import KV, keep_rows, run_steps
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.types import RaggedIds

__all__ = ["Ratios", "Tail", "compress_batches", "compress_ids", "ratio_plans"]

Ratios = int | Sequence[int | Sequence[int]]
Tail = Literal["flush", "raw"]

_MAX_DOCUMENTS, _MAX_TOKENS = 32, 16_384
"""Documents that are compressed side by side, and the tokens of their windows together."""


@dataclass(slots=True, eq=False)
class _Document:
    """One document on its way through the windows."""

    ids: Tensor  # of the open window and everything behind it
    table: SlotTable
    window_start: int
    end: int
    stop: int
    ratios: Sequence[int]
    offset: int
    n_windows: int = 0
    n_provisional: int = 0

    @property
    def done(self) -> bool:
        return self.end >= self.stop

    def advance(self, config: GistConfig, flush: bool) -> Step:
        """Plan the next step and move behind it."""
        ratio = self.ratios[min(self.n_windows, len(self.ratios) - 1)]
        full = self.window_start + config.window <= self.stop
        end = self.window_start + config.window if full else self.stop
        step = self._plan(config, ratio, (self.end, end), flush=flush, full=full)
        self.n_provisional = int(step.is_gist.sum()) if flush and not full else 0
        self.n_windows += 1
        self.table = step.after
        if full:
            self.window_start += config.n_stride
        # Flushed windows that overlap (stride < window) are encoded afresh, so that any cut gives the same memory.
        self.end = self.window_start if flush and full else end
        return step

    def _plan(self, config: GistConfig, ratio: int, tokens: tuple[int, int], *, flush: bool, full: bool) -> Step:
        n_window = tokens[1] - self.window_start
        n_closed = len(self.table) - int((self.table.stop > self.window_start)[self.table.kind != SINK].sum())
        closes = flush or full
        if config.placement == "interleave":
            place = np.arange(tokens[0], tokens[1]) - self.window_start + 1
            last = (place == n_window) & closes
            reach_back = np.where(place % ratio == 0, ratio, place % ratio)
            rows = interleaved_rows(tokens, (place % ratio == 0) | last, reach_back)
            return interleave_step(config, self.table, n_closed, rows, closes)
        reach = flush_reach(config.n_stride if full else n_window if flush else 0, ratio)
        n_condensed = n_window if flush else config.n_stride if full else None
        return append_step(config, self.table, n_closed, tokens, reach, n_condensed)


def compress_ids(  # noqa: PLR0913 - settings of one call, all but two by keyword
    attachment: Attachment,
    documents: Sequence[RaggedIds],
    *,
    ratio: Ratios,
    lead_token: int | None = None,
    window: int | None = None,
    memories: Sequence[GistMemory | None] | None = None,
    joint: bool = False,
    tail: Tail = "flush",
    fingerprint: str = "",
) -> list[GistMemory]:
    """Condense token sequences into memories, window by window, all in one ragged batch.

    Every step is one forward of the model for all documents that are not done yet, with padding hidden. Nothing is
    detached, so gradients flow through all windows. No logits are computed.

    Paper: UltraGist, arXiv 2405.16635, section 3; flushing the last window is ours.

    Args:
        attachment: The model; the caller holds its lock.
        documents: Token ids of each document, without lead token.
        ratio: Raw tokens per gist: one for all, or for each document one, or a list with one for each of its windows
            (the last repeats).
        lead_token: Token that stands at position 0 while a document is encoded, and is not stored.
        window: Raw tokens of a window, instead of `GistConfig.window`.
        memories: For each document, the memory to go on from, or None.
        joint: Keep the sink, as in one stream; needs `lead_token=None`.
        tail: `flush` condenses the open window too; `raw` keeps its tokens.
        fingerprint: Of the model, for the memories.

    Returns:
        One memory per document, keys and values of shape (1, kv_heads, slots, head_dim) for each layer.

    Raises:
        InputError: If an argument does not fit, or a document is empty.
        MemoryMismatchError: If a memory to go on from was made otherwise.
        ContextOverflowError: If window and memory exceed the positions of the model.
    """
    config = _config_for(attachment.config, window)
    maker = _Maker(config, lead_token, joint, fingerprint)
    plans = ratio_plans(ratio, len(documents))
    before = list(memories) if memories is not None else [None] * len(documents)
    if len(before) != len(documents):
        raise InputError(f"{len(before)} memories for {len(documents)} documents: give one (or None) for each.")
    if joint and lead_token is not None:
        raise InputError(
            "joint=True keeps the first token inside the stream: put it into the ids and pass lead_token=None."
        )
    if tail not in ("flush", "raw"):
        raise InputError(f"tail is {tail!r}, but must be 'flush' or 'raw'.")
    for memory in before:
        maker.check(memory)
    work = [
        _begin(attachment, ids, memory, plan, tail == "flush")
        for ids, memory, plan in zip(documents, before, plans, strict=True)
    ]
    stepping = config if joint else replace(config, sink=0)
    finished = _run(attachment, stepping, work, lead_token, tail == "flush")
    return [
        memory if memory is not None and not len(ids) else maker.make(document, kv)
        for ids, memory, (document, _), kv in zip(documents, before, work, finished, strict=True)
    ]


@torch.no_grad()
def compress_batches(
    attachment: Attachment, documents: Sequence[RaggedIds], plans: Sequence[Sequence[int]], **settings: Any
) -> list[GistMemory]:
    """Condense any number of documents, some at a time, those of like length together, without gradients.

    Args:
        attachment: The model; its lock is held for one batch at a time.
        documents: Token ids of each document.
        plans: For each document, a ratio for each of its windows.
        settings: As `compress_ids`.

    Returns:
        One memory per document, in order.
    """
    order = sorted(range(len(documents)), key=lambda place: len(documents[place]))
    made: dict[int, GistMemory] = {}
    size = max(1, min(_MAX_DOCUMENTS, _MAX_TOKENS // attachment.config.window))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        with attachment.lock:
            ratio = [plans[row] for row in rows]
            batch = compress_ids(attachment, [documents[row] for row in rows], ratio=ratio, **settings)
        made.update(zip(rows, batch, strict=True))
    return [made[place] for place in range(len(documents))]


def _run(
    attachment: Attachment,
    config: GistConfig,
    work: list[tuple[_Document, KV | None]],
    lead: int | None,
    flush: bool,
) -> list[KV | None]:
    """Take all documents through their windows in lock step; return what remains of each."""
    finished = [kv for _, kv in work]
    active = [index for index, (document, _) in enumerate(work) if not document.done]
    if not active:
        return finished
    source = torch.nn.utils.rnn.pad_sequence([work[index][0].ids for index in active], batch_first=True)
    state = _stack([work[index][1] for index in active])
    while active:
        documents = [work[index][0] for index in active]
        steps = [document.advance(config, flush) for document in documents]
        offsets = [document.offset for document in documents]
        everything, _ = run_steps(attachment, steps, source, offsets, state, lead)
        state = keep_rows(everything, steps, state.slots if state else 0)
        going_on = []
        for row, (index, document) in enumerate(zip(active, documents, strict=True)):
            if document.done:
                finished[index] = state.map(lambda part: part[row : row + 1, :, : len(document.table)])  # noqa: B023
            else:
                going_on.append(row)
        if len(going_on) < len(active):
            rows = torch.tensor(going_on, dtype=torch.long, device=source.device)
            longest = max((len(work[active[row]][0].table) for row in going_on), default=0)
            source = source.index_select(0, rows)
            state = state.map(lambda part: part.index_select(0, rows.to(part.device))[:, :, :longest])  # noqa: B023
            active = [active[row] for row in going_on]
    return finished


def _stack(parts: Sequence[KV | None]) -> KV | None:
    """Pad the memories to go on from to one number of slots; None if all are new."""
    known = [part for part in parts if part is not None]
    longest = max((part.slots for part in known), default=0)
    if not longest:
        return None
    blank = known[0].map(lambda layer: layer.new_zeros(1, layer.shape[1], 0, layer.shape[3]))
    padded = [
        (part or blank).map(lambda layer: torch.nn.functional.pad(layer, (0, 0, 0, longest - layer.shape[2])))
        for part in parts
    ]
    return KV(
        *(
            tuple(torch.cat(layer) for layer in zip(*(getattr(part, name) for part in padded), strict=True))
            for name in ("keys", "values")
        )
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """What all memories of one call have in common."""

    config: GistConfig
    lead_token: int | None
    joint: bool
    fingerprint: str

    def check(self, memory: GistMemory | None) -> None:
        """Refuse to go on from a memory that was made otherwise."""
        if memory is None:
            return
        mine = (self.config, self.lead_token, self.joint)
        theirs = (memory.config, memory.lead_token, memory.joint)
        for name, ours, other in zip(("config", "lead_token", "joint"), mine, theirs, strict=True):
            if ours != other:
                raise MemoryMismatchError(
                    f"the memory was made with {name} {other}, this call has {ours}. Use the same."
                )
        if self.fingerprint and memory.fingerprint and self.fingerprint != memory.fingerprint:
            raise MemoryMismatchError(
                f"the memory was made by model {memory.fingerprint[:12]}, this is {self.fingerprint[:12]}. Redo it."
            )
        if memory.progress is None:
            raise MemoryMismatchError(
                "the memory has no progress, so it cannot go on. Make a new one from the whole text."
            )

    def make(self, document: _Document, kv: KV | None) -> GistMemory:
        """Put a finished document into a memory."""
        if kv is None:
            raise InputError("a document is empty: give at least one token.")
        progress = Progress(
            tokens=document.stop,
            window_start=document.window_start,
            open_ids=tuple(document.ids[document.window_start - document.offset :].tolist()),
            n_provisional=document.n_provisional,
        )
        return GistMemory(
            keys=kv.keys,
            values=kv.values,
            segments=segments_of(document.table),
            config=self.config,
            progress=progress,
            fingerprint=self.fingerprint,
            lead_token=self.lead_token,
            joint=self.joint,
        )


def _config_for(config: GistConfig, window: int | None) -> GistConfig:
    if window is None or window == config.window:
        return config
    stride = window if config.n_stride == config.window else min(config.n_stride, window)
    return replace(config, window=window, stride=stride, sink=min(config.sink, window))


def ratio_plans(ratio: Ratios, n_documents: int) -> list[Sequence[int]]:
    """Give every document its list of ratios, one for each window.

    Args:
        ratio: One for all, or for each document one or a list.
        n_documents: Documents of the call.

    Returns:
        Lists of ratios; the last one of each repeats.

    Raises:
        InputError: If a ratio is not a whole number of at least 1, or their number does not fit.
    """
    each = [ratio] * n_documents if isinstance(ratio, int) else list(ratio)
    if len(each) != n_documents:
        raise InputError(f"{len(each)} ratios for {n_documents} documents: give one for all or one for each.")
    plans = [[plan] if isinstance(plan, int) else list(plan) for plan in each]
    if not all(plan and all(isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in plan) for plan in plans):
        raise InputError(f"ratio is {ratio!r}, but must be whole numbers of at least 1.")
    return list(plans)


def _begin(
    attachment: Attachment, ids: Tensor, memory: GistMemory | None, ratios: Sequence[int], flush: bool
) -> tuple[_Document, KV | None]:
    """Open a document, new or from a memory whose open window is dropped if it must be encoded again."""
    if ids.dim() != 1:
        raise InputError(f"a document has shape {tuple(ids.shape)}, but must be one row of token ids.")
    ids = ids.to(attachment.device)
    if memory is None:
        return _Document(ids, SlotTable.empty(), 0, 0, len(ids), ratios, 0), None
    progress, table = memory.progress, table_of(memory.segments)
    assert progress is not None
    kv = KV(memory.keys, memory.values)
    start, stop = progress.window_start, progress.tokens + len(ids)
    is_open = (table.stop > start) & ((table.kind != SINK) | (start == 0))
    again = len(ids) and (flush or progress.n_provisional)
    if again and is_open.any():
        index = np.flatnonzero(~is_open)
        chosen = torch.from_numpy(index).to(kv.keys[0].device)
        kv = kv.map(lambda part: part.index_select(2, chosen.to(part.device)))
        table = table.take(index)
    end = start if again else progress.tokens
    open_ids = torch.tensor(progress.open_ids, dtype=ids.dtype, device=ids.device)
    return _Document(torch.cat((open_ids, ids)), table, start, end, stop, ratios, start), kv
