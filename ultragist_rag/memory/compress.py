"""Condense documents into memories, all in one ragged batch.

Is        the loop over windows that every document takes in lock step, one forward of the model for each window.
Flow      layout, modeling -> [memory] -> engine, training.
Paper     UltraGist, arXiv 2405.16635, section 3; flushing, lead tokens and ragged batches are ours.
Change    what stays of an open window.
Not here  when a window begins and ends -> layout/course.py; the authors' stream, with its ratio policies and logits ->
          forward.py; texts, tokenizers and verbatim policies -> ingest.py.
Holds     compressing a, then b, equals compressing a + b, for every cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.layout.course import Course, fitting_ratio
from ultragist_rag.layout.slots import SINK, Ints, SlotTable
from ultragist_rag.memory.memory import GistMemory, Progress
from ultragist_rag.memory.packing import pack
from ultragist_rag.memory.segments import segments_of, table_of
from ultragist_rag.memory.windows import KV, remaining
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.types import RaggedIds

__all__ = ["Ratios", "Tail", "Verbatim", "compress_ids", "ratio_plans", "source_ids_of"]

Ratios = int | Sequence[int | Sequence[int]]
Tail = Literal["flush", "raw"]


@dataclass(slots=True, eq=False)
class _Document:
    """One document on its way through the windows: its course, and its tokens from the open window on."""

    ids: Tensor
    course: Course
    offset: int

    @property
    def open_ids(self) -> tuple[int, ...]:
        return tuple(self.ids[self.course.window_start - self.offset :].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Verbatim:
    """Which tokens of a call keep their raw keys and values beside the gists.

    Attributes:
        policy: Name of the policy that chose them.
        flags: One flag for each token of each document, those of an open window to go on from in front.
    """

    policy: str
    flags: Sequence[NDArray[np.bool_]]


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
    verbatim: Verbatim | None = None,
    slots: int | None = None,
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
        verbatim: Tokens that are kept beside the gists; None for none.
        slots: Slots that each memory may have, all kinds together; the lowest ratio from `ratio` on that fits is taken.

    Returns:
        One memory per document, keys and values of shape (1, kv_heads, slots, head_dim) for each layer; recurrent ones
        hold soft embeddings, see `GistMemory`.

    Raises:
        InputError: If an argument does not fit, a document is empty, or it does not fit into `slots` at any ratio.
        MemoryMismatchError: If a memory to go on from was made otherwise.
        ContextOverflowError: If window and memory exceed the positions of the model.
    """
    config = _config_for(attachment.config, window)
    maker = _Maker(config, lead_token, joint, fingerprint, verbatim.policy if verbatim else "")
    plans = ratio_plans(ratio, len(documents))
    before = list(memories) if memories is not None else [None] * len(documents)
    if len(before) != len(documents):
        raise InputError(f"{len(before)} memories for {len(documents)} documents: give one (or None) for each.")
    maker.check_call(tail)
    for memory in before:
        maker.check(memory)
    flags = verbatim.flags if verbatim else [None] * len(documents)
    work = [
        _begin(attachment, ids, memory, plan, tail == "flush", one)
        for ids, memory, plan, one in zip(documents, before, plans, flags, strict=True)
    ]
    stepping = config if joint else replace(config, sink=0)
    if slots is not None:
        for document, _ in work:
            document.course.ratios = [fitting_ratio(stepping, document.course, slots, tail == "flush")]
    finished = _run(attachment, stepping, work, lead_token, tail == "flush")
    return [
        memory if memory is not None and not len(ids) else maker.make(document, kv, source_ids_of(memory, ids))
        for ids, memory, (document, _), kv in zip(documents, before, work, finished, strict=True)
    ]


def _run(
    attachment: Attachment,
    config: GistConfig,
    work: list[tuple[_Document, KV | None]],
    lead: int | None,
    flush: bool,
) -> list[KV | None]:
    """Take all documents through their windows in lock step; return what remains of each."""
    finished = [kv for _, kv in work]
    active = [index for index, (document, _) in enumerate(work) if not document.course.done]
    if not active:
        return finished
    source = torch.nn.utils.rnn.pad_sequence([work[index][0].ids for index in active], batch_first=True)
    state = _stack([work[index][1] for index in active])
    while active:
        documents = [work[index][0] for index in active]
        steps = [document.course.advance(config, flush) for document in documents]
        offsets = [document.offset for document in documents]
        state = remaining(attachment, steps, source, offsets, state, lead)
        going_on = []
        for row, (index, document) in enumerate(zip(active, documents, strict=True)):
            if document.course.done:
                n_slots = len(document.course.table)
                finished[index] = state.map(lambda part: part[row : row + 1, :, :n_slots])  # noqa: B023
            else:
                going_on.append(row)
        if len(going_on) < len(active):
            rows = torch.tensor(going_on, dtype=torch.long, device=source.device)
            longest = max((len(work[active[row]][0].course.table) for row in going_on), default=0)
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
    verbatim: str

    def check_call(self, tail: str) -> None:
        """Refuse settings that exclude each other."""
        if self.joint and self.lead_token is not None:
            raise InputError(
                "joint=True keeps the first token inside the stream: put it into the ids and pass lead_token=None."
            )
        if tail not in ("flush", "raw"):
            raise InputError(f"tail is {tail!r}, but must be 'flush' or 'raw'.")
        if self.config.memory == "recurrent" and (tail == "raw" or self.verbatim):
            raise InputError(
                f"tail is {tail!r} and verbatim {self.verbatim!r}, but memory 'recurrent' holds no raw tokens. "
                "Use tail='flush' and no verbatim policy."
            )

    def check(self, memory: GistMemory | None) -> None:
        """Refuse to go on from a memory that was made otherwise."""
        if memory is None:
            return
        for name in ("config", "lead_token", "joint", "verbatim"):
            ours, other = getattr(self, name), getattr(memory, name)
            if ours != other:
                raise MemoryMismatchError(
                    f"the memory was made with {name} {other!r}, this call has {ours!r}. Use the same."
                )
        if self.fingerprint and memory.fingerprint and self.fingerprint != memory.fingerprint:
            raise MemoryMismatchError(
                f"the memory was made by model {memory.fingerprint[:12]}, this is {self.fingerprint[:12]}. Redo it."
            )
        if memory.progress is None:
            raise MemoryMismatchError(
                "the memory has no progress, so it cannot go on. Make a new one from the whole text."
            )

    def make(self, document: _Document, kv: KV | None, source_ids: Tensor | None) -> GistMemory:
        """Put a finished document into a memory."""
        if kv is None:
            raise InputError("a document is empty: give at least one token.")
        course = document.course
        progress = Progress(
            tokens=course.stop,
            window_start=course.window_start,
            open_ids=document.open_ids,
            n_provisional=course.n_provisional,
            open_verbatim=tuple((course.chosen[course.chosen >= course.window_start] - course.window_start).tolist()),
        )
        return GistMemory(
            **pack(kv.keys, kv.values),
            segments=segments_of(course.table),
            config=self.config,
            progress=progress,
            fingerprint=self.fingerprint,
            lead_token=self.lead_token,
            joint=self.joint,
            verbatim=self.verbatim,
            source_ids=source_ids,
        )


def source_ids_of(before: GistMemory | None, ids: RaggedIds) -> Tensor | None:
    """Give the tokens of a memory that goes on, or of a new one.

    Args:
        before: What it goes on from; None for nothing.
        ids: New token ids.

    Returns:
        All token ids on the CPU; None if those before are not known.
    """
    new = ids.detach().to("cpu", torch.int32)
    if before is None:
        return new
    return None if before.source_ids is None else torch.cat((before.source_ids, new))


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
    attachment: Attachment,
    ids: Tensor,
    memory: GistMemory | None,
    ratios: Sequence[int],
    flush: bool,
    flags: NDArray[np.bool_] | None,
) -> tuple[_Document, KV | None]:
    """Open a document, new or from a memory whose open window is dropped if it must be encoded again."""
    if ids.dim() != 1:
        raise InputError(f"a document has shape {tuple(ids.shape)}, but must be one row of token ids.")
    ids = ids.to(attachment.device)
    progress = memory.progress if memory is not None else Progress(0)
    assert progress is not None
    start, stop = progress.window_start, progress.tokens + len(ids)
    chosen = _chosen(flags, progress, len(progress.open_ids) + len(ids))
    if memory is None:
        return _Document(ids, Course(SlotTable.empty(), 0, 0, stop, ratios, chosen), 0), None
    table = table_of(memory.segments)
    kv = KV(memory.keys, memory.values)
    is_open = (table.stop > start) & ((table.kind != SINK) | (start == 0))
    again = len(ids) and (flush or progress.n_provisional)
    if again and is_open.any():
        index = np.flatnonzero(~is_open)
        places = torch.from_numpy(index).to(kv.keys[0].device)
        kv = kv.map(lambda part: part.index_select(2, places.to(part.device)))
        table = table.take(index)
    end = start if again else progress.tokens
    open_ids = torch.tensor(progress.open_ids, dtype=ids.dtype, device=ids.device)
    course = Course(table, start, end, stop, ratios, chosen)
    return _Document(torch.cat((open_ids, ids)), course, start), kv


def _chosen(flags: NDArray[np.bool_] | None, progress: Progress, n_tokens: int) -> Ints:
    """Return the tokens that are kept: those chosen now, and those of the open window that were chosen before."""
    if flags is None:
        return np.zeros(0, np.int64)
    if flags.shape != (n_tokens,):
        raise InputError(f"there are {flags.shape} flags of verbatim tokens for {n_tokens} tokens: give one for each.")
    places = np.union1d(np.flatnonzero(flags), np.array(progress.open_verbatim, np.int64))
    return progress.window_start + places
