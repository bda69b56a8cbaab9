"""GistMemory: the keys and values that stand for a text, of one sequence, in all layers.

Is        immutable records: Segment (what lies in which slots), Progress (how to go on), GistMemory (the tensors).
Flow      modeling -> [memory] -> compress, prompt, generate -> store -> engine.
Paper     UltraGist, arXiv 2405.16635; the sink, gist and raw activations of the authors' `Memory`.
Change    what a memory knows about itself.
Not here  making memories -> compress.py; putting them into a prompt -> prompt.py; files -> store/codec.py.
Holds     the segments of a memory lie side by side and cover all its slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.memory.packing import packed_view, unpacked
from ultragist_rag.types import LayerKV, RaggedIds

__all__ = ["GistMemory", "Progress", "Segment", "SegmentKind"]

SegmentKind = Literal["sink", "gist", "verbatim", "raw"]

_LISTS = ("open_ids", "choices", "open_verbatim")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of slots of one kind.

    Attributes:
        kind: `sink` (first tokens, kept for ever), `gist`, `verbatim` (raw, kept on purpose) or `raw` (newest).
        start: First slot.
        stop: Slot behind the last one.
        source_start: First token of the sequence that the slots stand for.
        source_stop: Token behind the last one.
        ratio: Raw tokens per gist; None where the slots are tokens themselves.
        turn_id: Turn of a conversation that the tokens belong to, if any.
    """

    kind: SegmentKind
    start: int
    stop: int
    source_start: int
    source_stop: int
    ratio: int | None = None
    turn_id: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a sequence stands, so that it can go on exactly.

    Attributes:
        tokens: Tokens seen so far.
        window_start: First token of the open window.
        interleave_phase: Raw tokens since the last interleaved gist.
        open_ratio: Ratio chosen already, for the open window or for the whole sequence; None if still open.
        ratio_index: Ratios of the policy `sequence` used so far.
        open_ids: Token ids of the open window, where it must be encoded again to go on.
        n_provisional: Gists of the open window, dropped when the sequence goes on.
        choices: Ratios left to the policy `sequence`, once it has begun.
        open_verbatim: Places in `open_ids` of the tokens that are kept verbatim.
    """

    tokens: int
    window_start: int = 0
    interleave_phase: int = 0
    open_ratio: int | None = None
    ratio_index: int = 0
    open_ids: tuple[int, ...] = ()
    n_provisional: int = 0
    choices: tuple[int, ...] = ()
    open_verbatim: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` is the exact inverse."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in _LISTS}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Make a Progress from what `to_dict` returned."""
        lists = {name: tuple(values.get(name, ())) for name in _LISTS}
        return cls(**{**values, **lists})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class GistMemory:
    """The memory of one sequence: pre-RoPE keys and values of every layer, and what they stand for.

    A memory never changes; what looks like a change returns a new one. It belongs to the model whose fingerprint it
    carries and can stand at any place of a prompt, since its keys are rotated only when the prompt is laid out.

    A recurrent memory (`GistConfig.memory`) holds one soft embedding for each slot instead. Its tensors have one layer
    of one head: the keys are the first halves of the embeddings, the values the second halves.

    Attributes:
        keys: Keys before RoPE, one tensor of shape (1, kv_heads, slots, head_dim) per layer.
        values: Values, shapes as `keys`.
        segments: What lies in which slots, in reading order, without gaps.
        config: The settings it was made with.
        progress: Where the sequence stands; None if it cannot go on.
        fingerprint: Of the model that made it; empty if unknown.
        tokenizer_fingerprint: Of the tokenizer that cut the text; empty if unknown or if ids were given.
        lead_token: Token that must stand once at the head of a prompt with this memory; None if none.
        joint: Whether it is a stream of its own, with its first token and sink inside, not a composable document.
        verbatim: Name of the policy whose tokens keep their raw keys and values; `custom` if it has no name, empty for
            none.
        source_ids: Token ids of the sequence, shape (tokens,), on the CPU, so that an answer can be held to them
            (`source_bias`); None if they are not known.
        packed: Keys and values of all layers as one tensor of shape (layers, 2, kv_heads, slots, head_dim), if they lie
            in one piece and carry no gradients; else None. The same numbers, for copying and rotating all at once.

    Raises:
        InputError: If layers, shapes or segments contradict each other.
    """

    keys: tuple[LayerKV, ...]
    values: tuple[LayerKV, ...]
    segments: tuple[Segment, ...]
    config: GistConfig
    progress: Progress | None = None
    fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    lead_token: int | None = None
    joint: bool = False
    verbatim: str = ""
    source_ids: RaggedIds | None = None
    packed: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that tensors and segments speak of the same slots."""
        if not self.keys or len(self.keys) != len(self.values):
            raise InputError(f"{len(self.keys)} layers of keys and {len(self.values)} of values: give as many of both.")
        for keys, values in zip(self.keys, self.values, strict=True):
            same_slots = keys.dim() == 4 and keys.shape[0] == 1 and keys.shape[2] == self.keys[0].shape[2]
            if keys.shape != values.shape or not same_slots:
                raise InputError(
                    f"keys of shape {tuple(keys.shape)} and values of shape {tuple(values.shape)}: every layer must "
                    f"have both of shape (1, kv_heads, {self.keys[0].shape[-2]}, head_dim)."
                )
        stop = 0
        for segment in self.segments:
            if segment.start != stop or segment.stop <= segment.start:
                raise InputError(
                    f"{segment} does not begin at slot {stop}: segments must follow each other without gaps."
                )
            stop = segment.stop
        if stop != self.slots:
            raise InputError(f"segments cover {stop} slots, but the tensors have {self.slots}.")
        if self.source_ids is not None and len(self.source_ids) != self.n_source_tokens:
            raise InputError(
                f"there are {len(self.source_ids)} source_ids of {self.n_source_tokens} tokens: give all or None."
            )
        object.__setattr__(self, "packed", packed_view(self.keys, self.values))

    @property
    def slots(self) -> int:
        """Places the memory takes in a prompt."""
        return int(self.keys[0].shape[2])

    @property
    def n_sink(self) -> int:
        """Slots of sink tokens."""
        return self._count("sink")

    @property
    def n_gists(self) -> int:
        """Slots of gist tokens, provisional ones included."""
        return self._count("gist")

    @property
    def n_verbatim(self) -> int:
        """Slots of raw tokens kept on purpose."""
        return self._count("verbatim")

    @property
    def n_raw_tail(self) -> int:
        """Slots of newest tokens, not condensed yet."""
        return self._count("raw")

    @property
    def n_provisional(self) -> int:
        """Gists of the open window, which continuing drops and makes anew."""
        return self.progress.n_provisional if self.progress else 0

    @property
    def n_source_tokens(self) -> int:
        """Tokens of the sequence that the memory stands for."""
        if self.progress is not None:
            return self.progress.tokens
        return max((segment.source_stop for segment in self.segments), default=0)

    @property
    def achieved_ratio(self) -> float:
        """Source tokens per slot, all slots counted; 1.0 for an empty memory."""
        return self.n_source_tokens / self.slots if self.slots else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    @property
    def dtype(self) -> torch.dtype:
        """Number format of keys and values."""
        return self.keys[0].dtype

    @property
    def embeddings(self) -> Float[Tensor, "slots hidden"]:
        """Soft embeddings of a recurrent memory.

        Raises:
            InputError: If the memory holds keys and values.
        """
        if self.config.memory != "recurrent":
            raise InputError(f"a memory of kind {self.config.memory!r} has no embeddings: use its keys and values.")
        return torch.cat((self.keys[0], self.values[0]), dim=-1)[0, 0]

    def to(self, *args: Any, **kwargs: Any) -> GistMemory:
        """Return the memory on another device or in another number format; arguments as `torch.Tensor.to`."""
        return self._map(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> GistMemory:
        """Return the memory in page-locked host memory, from where copies to a GPU are fast."""
        return self._map(lambda tensor: tensor.pin_memory())

    def detach(self) -> GistMemory:
        """Return the memory without its gradient history."""
        return self._map(lambda tensor: tensor.detach())

    def seal(self) -> GistMemory:
        """Return the memory with its provisional gists made final.

        The open window is closed where it stands and its token ids are forgotten; going on begins a new window.
        A raw tail stays as it is.
        """
        if self.progress is None:
            return self
        tokens = self.progress.tokens
        closed = replace(self.progress, window_start=tokens, open_ids=(), open_verbatim=())
        return replace(self, progress=replace(closed, n_provisional=0, interleave_phase=0))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as one tensor what lies in one piece: a pickle would hold the whole piece for each layer."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        if self.packed is not None:
            del known["keys"], known["values"]
        return _restored, (self.packed, known)

    def _count(self, kind: SegmentKind) -> int:
        return sum(segment.stop - segment.start for segment in self.segments if segment.kind == kind)

    def _map(self, change: Any) -> GistMemory:
        if self.packed is not None:
            return replace(self, **unpacked(change(self.packed)))
        keys, values = (tuple(change(tensor) for tensor in tensors) for tensors in (self.keys, self.values))
        return replace(self, keys=keys, values=values)

    def __repr__(self) -> str:
        """Counts, never contents."""
        kinds = (
            f"n_sink={self.n_sink}, n_gists={self.n_gists}, n_verbatim={self.n_verbatim}, n_raw_tail={self.n_raw_tail}"
        )
        return (
            f"GistMemory(slots={self.slots}, {kinds}, n_source_tokens={self.n_source_tokens}, layers={len(self.keys)})"
        )


def _restored(packed: Tensor | None, known: Mapping[str, Any]) -> GistMemory:
    return GistMemory(**known) if packed is None else GistMemory(**unpacked(packed), **known)
