"""Bring the slots of memories to where a prompt has them: gathered, and keys rotated to their places.

Is        `rotated_slots`: the keys and values that stand in front in the cache.
Flow      memory, prompt_layout, rope -> [assembly] -> prompt, first_forward.
Change    how slots get to the device.
Not here  which slots stand where -> prompt_layout.py.
Holds     both ways give the same: all layers at once, where every memory lies in one piece, or layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.fast import is_fast
from ultragist_rag.memory.prompt_layout import Layout
from ultragist_rag.modeling.rope import decoder_of, model_cos_sin, rotate

__all__ = ["rotated_slots"]


def rotated_slots(model: Any, layout: Layout) -> list[tuple[Tensor, Tensor]]:
    """Gather slots and rotate their keys.

    Args:
        model: The causal LM.
        layout: Of the prompts.

    Returns:
        For each layer, keys rotated to their places and values, (batch, kv_heads, slots, head_dim); an empty list if
        there are no slots.
    """
    if not layout.slot_index.shape[1]:
        return []
    cos_sin = model_cos_sin(model, layout.slot_positions.clamp(min=0))
    devices = {next(layer.parameters()).device for layer in decoder_of(model).layers}
    packed = [memory.packed for memory in layout.memories]
    if is_fast("one-rotation") and len(devices) == 1 and all(part is not None for part in packed):
        return _all_layers(packed, layout, cos_sin, model.dtype)  # type: ignore[arg-type]
    return [
        _layer(number, layer, layout, cos_sin, model.dtype) for number, layer in enumerate(decoder_of(model).layers)
    ]


def _all_layers(
    packed: Sequence[Tensor], layout: Layout, cos_sin: tuple[Tensor, Tensor], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    device = cos_sin[0].device
    moved = [part.to(device, dtype, non_blocking=part.is_pinned()) for part in packed]
    slots = torch.cat(moved, dim=3)  # (layers, 2, kv_heads, all slots, head_dim)
    if layout.in_order:
        picked = slots.unsqueeze(2)
    else:
        index = layout.slot_index
        filled = torch.nn.functional.pad(slots, (0, 0, 0, 1))
        picked = filled.index_select(3, index.flatten()).unflatten(3, tuple(index.shape)).movedim(3, 2)
    keys = rotate(picked[:, 0], *cos_sin)  # (layers, batch, kv_heads, slots, head_dim)
    return list(zip(keys.unbind(), picked[:, 1].unbind(), strict=True))


def _layer(
    number: int, layer: Any, layout: Layout, cos_sin: tuple[Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    device = next(layer.parameters()).device
    keys, values = (
        _gather([tensors[number].to(device, dtype) for tensors in both], layout.slot_index.to(device))
        for both in zip(*((memory.keys, memory.values) for memory in layout.memories), strict=True)
    )
    return rotate(keys, *cos_sin), values


def _gather(tensors: list[Tensor], index: Tensor) -> Tensor:
    _, kv_heads, _, head_dim = tensors[0].shape
    padding = tensors[0].new_zeros((kv_heads, 1, head_dim))
    slots = torch.cat([*(tensor[0] for tensor in tensors), padding], dim=1)  # (kv_heads, all slots + 1, head_dim)
    picked = slots.index_select(1, index.flatten()).view(kv_heads, *index.shape, head_dim)
    return picked.transpose(0, 1)  # (batch, kv_heads, slots, head_dim)
