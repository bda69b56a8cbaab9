"""From texts to memories: token ids, verbatim tokens, ratios, batches.

Is        what stands around the loop over windows when an engine is asked to compress.
Flow      documents, verbatim, compress -> [ingest] -> engine.
Paper     none.
Change    what is asked about a text before it is compressed, how many documents run side by side.
Not here  the windows -> compress.py; the arguments, explained -> engine.py.
Holds     one memory per text, in order, whatever the batches are.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypedDict
from weakref import WeakSet

import torch
from torch import Tensor

from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.memory.compress import Ratios, Tail, Verbatim, compress_ids, ratio_plans
from ultragist_rag.memory.documents import ids_of_tensor, ids_of_text
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.verbatim import Passage, VerbatimPolicy, choose, policy_name
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.calibration import doubt
from ultragist_rag.types import RaggedIds

__all__ = ["CompressSettings", "check_memory", "compress_texts", "verbatim_tokens"]

_MAX_DOCUMENTS, _MAX_TOKENS = 128, 16_384
"""Documents that are compressed side by side, and the raw tokens of a forward, padding included."""

_warned: WeakSet[Any] = WeakSet()


class CompressSettings(TypedDict, total=False):
    """Settings of `UltraGist.compress`, where they are explained."""

    ratio: Ratios | None
    memory: GistMemory | None
    joint: bool
    tail: Tail
    verbatim: VerbatimPolicy | None
    slots: int | None


def compress_texts(  # noqa: PLR0913 - the settings of `UltraGist.compress`
    engine: Any,
    documents: Sequence[str | Tensor],
    *,
    ratio: Ratios | None,
    memory: GistMemory | None,
    joint: bool,
    tail: Tail,
    verbatim: VerbatimPolicy | None,
    slots: int | None,
) -> list[GistMemory]:
    """Condense texts; see `UltraGist.compress`.

    Args:
        engine: The engine.
        documents: Texts or token ids.
        ratio: Raw tokens per gist, or a plan; None for the ratio of the config, or the lowest one where `slots` is set.
        memory: Memory to go on from.
        joint: Whether the stream keeps its first token and sink.
        tail: What becomes of an open window.
        verbatim: Policy of the tokens that stay raw.
        slots: Slots that each memory may have.

    Returns:
        One memory per text.

    Raises:
        InputError: If an argument does not fit.
    """
    if memory is not None and len(documents) != 1:
        raise InputError(f"there are {len(documents)} texts and one memory to go on from: give one text.")
    if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or slots < 1):
        raise InputError(f"slots is {slots!r}, but must be a whole number of at least 1.")
    check_memory(engine, memory)
    rows = [_ids(engine, document, joint=joint, first=memory is None) for document in documents]
    if ratio is None:
        ratio = engine.config.ratio if slots is None else min(one for one in engine.config.choices if one)
    plans = ratio_plans(ratio, len(rows))
    if rows and not joint:
        _warn_composed(engine, max(map(max, plans)))
    lead = None if joint else engine.lead_token
    settings = {"lead_token": lead, "joint": joint, "tail": tail, "slots": slots, "fingerprint": engine.fingerprint}
    settings |= {"memories": memory and [memory], "verbatim": _verbatim(engine, verbatim, rows, memory, lead)}
    made = _compress_batches(engine.attachment, rows, plans, **settings)
    return [replace(one, tokenizer_fingerprint=engine.tokenizer_fingerprint) for one in made]


def _warn_composed(engine: Any, ratio: int) -> None:
    """Say once for each engine if independent memories at this ratio are not to be relied on."""
    reason = None if engine in _warned else doubt(engine.calibration, ratio, engine.trained_composed)
    if reason is not None:
        _warned.add(engine)
        warnings.warn(reason, stacklevel=4)


def verbatim_tokens(engine: Any, texts: Sequence[str | Tensor], policy: VerbatimPolicy | None) -> list[int]:
    """Count the tokens that a policy keeps of independent texts.

    Args:
        engine: The engine.
        texts: The texts, or their token ids.
        policy: Name or function; None keeps none.

    Returns:
        For each text, the slots that its verbatim tokens take.

    Raises:
        InputError: If there is no such policy.
    """
    rows = [_ids(engine, text, joint=False, first=True) for text in texts]
    kept = _verbatim(engine, policy, rows, None, engine.lead_token)
    return [int(flags.sum()) for flags in kept.flags] if kept else [0] * len(texts)


def check_memory(engine: Any, memory: GistMemory | None) -> None:
    """Refuse a memory of another model or tokenizer.

    Args:
        engine: The engine.
        memory: Memory to go on from, or None.

    Raises:
        MemoryMismatchError: If it was made elsewhere.
    """
    for name in ("fingerprint", "tokenizer_fingerprint") if memory is not None else ():
        ours, other = getattr(engine, name), getattr(memory, name)
        if ours and other and ours != other:
            raise MemoryMismatchError(f"the memory has {name} {other[:12]}, this engine {ours[:12]}. Make it anew.")


def _ids(engine: Any, document: str | Tensor, *, joint: bool, first: bool) -> Tensor:
    if isinstance(document, str):
        return ids_of_text(document, engine.tokenizer, joint=joint, first=first)
    lead_token = engine.lead_token if first and not joint else None
    return ids_of_tensor(document, int(engine.model.config.vocab_size), lead_token)


def _verbatim(
    engine: Any, policy: VerbatimPolicy | None, rows: Sequence[Tensor], memory: GistMemory | None, lead: int | None
) -> Verbatim | None:
    """Ask the policy, about the open window of a memory to go on from, too."""
    if policy is None:
        return None
    progress = memory.progress if memory is not None else None
    before = torch.tensor(progress.open_ids if progress else (), dtype=torch.long)
    passages = [Passage(torch.cat((before, ids)), engine.tokenizer, engine.attachment, lead) for ids in rows]
    return Verbatim(policy_name(policy), choose(policy, passages))


@torch.no_grad()
def _compress_batches(
    attachment: Attachment, documents: Sequence[RaggedIds], plans: Sequence[Sequence[int]], **settings: Any
) -> list[GistMemory]:
    """Condense any number of documents, some at a time, those of like length together, holding the lock for each."""
    order = sorted(range(len(documents)), key=lambda place: len(documents[place]))
    verbatim: Verbatim | None = settings.pop("verbatim")
    made: dict[int, GistMemory] = {}
    for rows in _batches(order, [min(len(ids), attachment.config.window) for ids in documents]):
        with attachment.lock:
            ratio = [plans[row] for row in rows]
            kept = replace(verbatim, flags=[verbatim.flags[row] for row in rows]) if verbatim else None
            batch = compress_ids(attachment, [documents[row] for row in rows], ratio=ratio, verbatim=kept, **settings)
        made.update(zip(rows, batch, strict=True))
    return [made[place] for place in range(len(documents))]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut documents, shortest first, into batches; the last of each decides how wide its forward is."""
    start = 0
    for stop in range(1, len(order) + 1):
        n = stop + 1 - start
        if stop == len(order) or n > _MAX_DOCUMENTS or n * lengths[order[stop]] > _MAX_TOKENS:
            yield order[start:stop]
            start = stop
