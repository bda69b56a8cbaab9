"""Attention of a window in two calls: raw rows by the causal kernel, the few rows behind them with a mask.

Is        `Split`, which travels as the attention mask, and the attention function that takes it.
Flow      types -> [modeling] -> memory.
Change    which kernels are called.
Not here  whether a window can be split -> memory/windows.py.
Holds     equals one call with the whole mask. No key or value is repeated for heads that share it.
Source    the split is ours; causal kernels that take no mask: FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from ultragist_rag.types import VisibilityMask

__all__ = ["NAME", "Split", "masked_attention", "register"]

NAME = "ultragist_split"
"""Name of the attention function at transformers."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What the rows of a window see, without a mask for most of them.

    Attributes:
        n_causal: First rows, each of which sees the whole past, the rows in front of it and itself.
        lead: Whether the first row is a lead token, which sees itself alone.
        mask: What the other rows see of past and rows, shape (batch, 1, rows - n_causal, past + rows).
    """

    n_causal: int
    lead: bool
    mask: VisibilityMask


def register() -> None:
    """Make the attention function known to transformers; doing so twice is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Split,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers; `attention_mask` is a `Split`."""
    del module
    n, n_past = attention_mask.n_causal, key.shape[2] - query.shape[2]
    raw = _causal(query[:, :, :n], key[:, :, : n_past + n], value[:, :, : n_past + n], scaling)
    if attention_mask.lead and n_past:
        groups = query.shape[1] // key.shape[1]
        raw[:, :, 0] = value[:, :, n_past].repeat_interleave(groups, dim=1)
    others = masked_attention(query[:, :, n:], key, value, attention_mask.mask, scaling)
    return torch.cat((raw, others), dim=2).transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    bias = causal_lower_right(query.shape[2], key.shape[2]) if key.shape[2] > query.shape[2] else None
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not query.is_cuda:  # kernels for GPUs take shared heads as they are
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    settings: dict[str, Any] = {"enable_gqa": True} if key.shape[1] != query.shape[1] else {}
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=bias is None, scale=scale, **settings
    )


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: VisibilityMask,
    scale: float | None,
    kernel: Callable[..., Tensor] = scaled_dot_product_attention,
) -> Tensor:
    """Attend with a mask; query heads that share a key head run as further rows of it.

    Args:
        query: Shape (batch, heads, rows, head_dim).
        key: Shape (batch, kv_heads, keys, head_dim).
        value: As `key`.
        mask: What each row sees, shape (batch, 1, rows, keys).
        scale: Of the scores; None for 1 / sqrt(head_dim).
        kernel: What is called, with the arguments of `scaled_dot_product_attention`, for as many key heads as heads.

    Returns:
        Shape as `query`.
    """
    batch, heads, rows, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:
        query = query.reshape(batch, key.shape[1], groups * rows, width)
        mask = mask.repeat(1, 1, groups, 1)
    seen = kernel(query, key, value, attn_mask=mask, scale=scale)
    return seen.reshape(batch, heads, rows, width)
