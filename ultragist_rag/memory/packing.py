"""Keys and values of all layers in one piece of memory, and as a tensor for each layer.

Is        the two views of the same numbers: `pack` copies layers together, `unpacked` and `packed_view` copy nothing.
Flow      types -> [packing] -> memory, compress -> store.
Change    the order in which layers lie; it is that of the files (docs/file_format.md).
Holds     `packed_view(**unpacked(x))` is x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["KeysValues", "pack", "packed_view", "unpacked"]


class KeysValues(TypedDict):
    """Keys and values of a memory: (1, kv_heads, slots, head_dim) for each layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def pack(keys: Sequence[Tensor], values: Sequence[Tensor]) -> KeysValues:
    """Copy keys and values into one piece, if their layers are alike and carry no gradients.

    Args:
        keys: Shape (1, kv_heads, slots, head_dim) for each layer.
        values: As `keys`.

    Returns:
        `keys` and `values` for a memory.
    """
    alike = {(part.shape, part.dtype, part.device, part.requires_grad) for part in (*keys, *values)}
    if len(alike) > 1 or keys[0].requires_grad:
        return {"keys": tuple(keys), "values": tuple(values)}
    pairs = [part[0] for pair in zip(keys, values, strict=True) for part in pair]
    return unpacked(torch.stack(pairs).unflatten(0, (-1, 2)))


def unpacked(packed: Tensor) -> KeysValues:
    """Give a tensor for each layer.

    Args:
        packed: Shape (layers, 2, kv_heads, slots, head_dim).

    Returns:
        `keys` and `values`, views of shape (1, kv_heads, slots, head_dim) for each layer.
    """
    keys, values = (packed[:, place : place + 1].unbind() for place in (0, 1))
    return {"keys": keys, "values": values}


def packed_view(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor | None:
    """Give all layers as one tensor.

    Args:
        keys: Shape (1, kv_heads, slots, head_dim) for each layer.
        values: As `keys`.

    Returns:
        A view of shape (layers, 2, kv_heads, slots, head_dim); None if they lie otherwise, or carry gradients.
    """
    first = keys[0]
    if not first.numel():
        return None
    place, storage, n = first.storage_offset(), first.untyped_storage().data_ptr(), first.numel()
    for pair in zip(keys, values, strict=True):
        for part in pair:
            fits = part.shape == first.shape and part.dtype == first.dtype and part.is_contiguous()
            same = part.untyped_storage().data_ptr() == storage and part.storage_offset() == place
            if not (fits and same) or part.requires_grad:
                return None
            place += n
    return first.as_strided((len(keys), 2, *first.shape[1:]), (2 * n, n, *first.stride()[1:]), first.storage_offset())
