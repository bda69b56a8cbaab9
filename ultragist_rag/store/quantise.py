"""Memories in 8 or 4 bits per number: codes, and a grid for each group of them.

Is        GistMemory -> codes and grids -> keys and values, and a report of what that costs.
Flow      sizing, memory -> [quantise] -> codec -> store.
Paper     KIVI, arXiv 2402.02750, section 3.2: keys per channel, values per token, asymmetric. Groups that span the
          memory where it is short, and grids that cover their group, are ours.
Change    how a group is turned into codes (raise FORMAT in refs.py).
Not here  how long groups are, which tensors a file holds -> ultragist_rag/sizing.py; the file -> codec.py.
Holds     no number is further than half a step of its group from what it was, the rounding of its format aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.sizing import BITS, KINDS, Kind, n_groups
from ultragist_rag.types import LayerKV

__all__ = ["QuantisationReport", "Quantised", "as_stored", "check_kind", "quantisation_report", "quantise"]

_AXES = {"keys": 1, "values": 2}
"""Axis of (kv_heads, slots, head_dim) along which neighbours share a group: slots for keys, head_dim for values."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Keys and values of a memory as whole numbers.

    Every kind of slot is treated alike: sink, gist, verbatim and raw.

    Attributes:
        kind: `int8` or `int4`.
        tensors: By the names that they have in a file. `keys.0` and `values.0` hold the codes, of shape (1, kv_heads,
            slots, head_dim); of 4 bits, two lie in one byte, the first in the low half. `keys.0.grid` of shape (2,
            kv_heads, groups, head_dim) and `values.0.grid` of shape (2, kv_heads, slots, groups) hold the step and the
            lowest value of each group: a number is lowest value + step x code.
    """

    kind: Kind
    tensors: Mapping[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of codes and grids."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def restore(self, dtype: torch.dtype) -> tuple[tuple[LayerKV, ...], tuple[LayerKV, ...]]:
        """Return keys and values of all layers on the CPU, in a number format."""
        keys, values = (
            tuple(self._layer(part, layer).to(dtype) for layer in range(len(self.tensors) // 4)) for part in _AXES
        )
        return keys, values

    def errors(self, memory: GistMemory) -> tuple[float, float]:
        """Return the relative errors of keys and values against the memory that this was made of."""
        keys, values = self.restore(memory.dtype)
        return _error(memory.keys, keys), _error(memory.values, values)

    def _layer(self, part: str, layer: int) -> LayerKV:
        """Return keys or values of a layer in float32."""
        codes, grid = self.tensors[f"{part}.{layer}"][0], self.tensors[f"{part}.{layer}.grid"]
        head_dim = self.tensors[f"keys.{layer}.grid"].shape[-1]
        axis = _AXES[part]
        flat = _unpack(codes, head_dim, self.kind).movedim(axis, -1)
        size = _grouping(flat.shape[-1], self.kind)[1]
        step, lowest = grid.movedim(axis + 1, -1).float().repeat_interleave(size, -1)[..., : flat.shape[-1]]
        numbers: Tensor = lowest + step * flat.float()
        return numbers.movedim(-1, axis)[None].contiguous()


@dataclass(frozen=True, slots=True)
class QuantisationReport:
    """What quantising a memory costs and saves.

    Attributes:
        kind: `int8` or `int4`.
        key_error: Root of the mean squared error of all keys, over the root of their mean square.
        value_error: The same of the values.
        n_bytes: Bytes of codes and grids.
        n_bytes_before: Bytes of keys and values in the number format of the memory.
    """

    kind: Kind
    key_error: float
    value_error: float
    n_bytes: int
    n_bytes_before: int


def check_kind(kind: str) -> Kind:
    """Return the name of a quantisation as such.

    Raises:
        InputError: If there is none of this name.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise InputError(f"quantise is {kind!r}, but must be one of {', '.join(KINDS)}, or None for none.")


def quantise(memory: GistMemory, kind: str) -> Quantised:
    """Turn keys and values into whole numbers.

    Args:
        memory: The memory, on any device, in any number format.
        kind: `int8` or `int4`.

    Returns:
        Codes and grids, on the CPU; the same memory always gives the same ones.

    Raises:
        InputError: If there is no such kind, or a number is not finite or too large for float16.

    Example:
        >>> from ultragist_rag.testing import tiny_engine
        >>> memory = tiny_engine(window=8, ratio=4).compress(torch.arange(3, 23)[None])
        >>> memory.nbytes, quantise(memory, "int8").nbytes, quantise(memory, "int4").nbytes
        (3840, 1464, 984)
    """
    checked = check_kind(kind)
    grids: dict[str, Tensor] = {}
    codes: dict[str, Tensor] = {}
    for layer, pair in enumerate(zip(memory.keys, memory.values, strict=True)):
        for (part, axis), tensor in zip(_AXES.items(), pair, strict=True):
            name = f"{part}.{layer}"
            codes[name], grids[f"{name}.grid"] = _quantise(tensor, axis, checked)
    return Quantised(checked, {**grids, **codes})


def as_stored(memory: GistMemory, kind: str | None) -> GistMemory:
    """Return a memory as it will be read after it was stored with a quantisation; itself for None.

    Raises:
        InputError: As `quantise`.
    """
    if kind is None:
        return memory
    keys, values = quantise(memory, kind).restore(memory.dtype)
    return replace(memory, keys=keys, values=values)


def quantisation_report(memory: GistMemory, kind: str) -> QuantisationReport:
    """Say what quantising a memory costs and saves.

    Args:
        memory: The memory.
        kind: `int8` or `int4`.

    Returns:
        Errors and bytes.

    Raises:
        InputError: As `quantise`.
    """
    quantised = quantise(memory, kind)
    return QuantisationReport(quantised.kind, *quantised.errors(memory), quantised.nbytes, memory.nbytes)


def _quantise(
    tensor: LayerKV, axis: int, kind: Kind
) -> tuple[UInt8[Tensor, "1 kv_heads slots columns"], Float16[Tensor, "2 kv_heads rows groups"]]:
    numbers = tensor.detach()[0].cpu().float().movedim(axis, -1)
    count = numbers.shape[-1]
    groups, size = _grouping(count, kind)
    # The last group may lack a few numbers: the last one stands in for them and changes neither lowest nor highest.
    filled = numbers[..., torch.arange(groups * size).clamp(max=count - 1)].unflatten(-1, (groups, size))
    lowest = _to_half(filled.amin(-1), -math.inf)
    step = _to_half((filled.amax(-1) - lowest.float()) / (2 ** BITS[kind] - 1), math.inf)
    grid = torch.stack((step, lowest))
    if not grid.isfinite().all():
        raise InputError(
            "a memory with numbers that are not finite or too large for float16 cannot be quantised: store it as it is."
        )
    codes = ((filled - lowest.float()[..., None]) / step.float().clamp(min=2.0**-24)[..., None]).round()
    flat = codes.to(torch.uint8).flatten(-2)[..., :count].movedim(-1, axis)
    return _pack(flat, kind)[None].contiguous(), grid.movedim(-1, axis + 1).contiguous()


def _grouping(count: int, kind: Kind) -> tuple[int, int]:
    """Return the number of groups and the length of all but the last."""
    groups = n_groups(count, kind)
    return groups, -(-count // groups) if groups else 1


def _to_half(numbers: Tensor, towards: float) -> Tensor:
    """Round to float16 in one direction, so that a grid never ends inside its group."""
    half = numbers.to(torch.float16)
    short = half.float() > numbers if towards < 0 else half.float() < numbers
    return torch.where(short, torch.nextafter(half, torch.full_like(half, towards)), half)


def _pack(codes: Tensor, kind: Kind) -> Tensor:
    if BITS[kind] == 8:
        return codes
    even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    return even[..., 0::2] | (even[..., 1::2] << 4)


def _unpack(codes: Tensor, head_dim: int, kind: Kind) -> Tensor:
    if BITS[kind] == 8:
        return codes
    return torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)[..., :head_dim]


def _error(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Return the relative error over all layers, to four digits: files hold it, and must not depend on summation."""
    wrong = total = 0.0
    for old, new in zip(before, after, strict=True):
        exact = old.detach().cpu().double()
        wrong += float((new.double() - exact).square().sum())
        total += float(exact.square().sum())
    return float(f"{math.sqrt(wrong / total):.4g}") if total else 0.0
