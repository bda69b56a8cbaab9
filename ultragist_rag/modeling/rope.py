"""Rotate keys to the positions where they stand, with the model's own rotary embedding.

Is        half-split RoPE on pre-RoPE keys; cos and sin come from the model, scaled as it scales them (YaRN included).
Flow      types -> [modeling] -> memory. Imports torch only.
Paper     RoFormer, arXiv 2104.09864.
Change    how keys are rotated. `attach` proves at every start that it is what the model does.
Holds     `rotate(pre-RoPE keys, *model_cos_sin(model, positions))` equals the keys in the stock cache.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["decoder_of", "model_cos_sin", "rotate"]


def decoder_of(model: Any) -> Any:
    """Return the decoder inside a causal LM (`model.model`), unwrapped from PEFT if need be."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.model


def model_cos_sin(
    model: Any, positions: Int[Tensor, "batch slots"]
) -> tuple[Float[Tensor, "batch slots head_dim"], Float[Tensor, "batch slots head_dim"]]:
    """Ask the model's rotary embedding for cos and sin.

    Args:
        model: A causal LM.
        positions: Positions of the slots.

    Returns:
        cos and sin in the number format of the model, attention scaling included.
    """
    decoder = decoder_of(model)
    weight = decoder.embed_tokens.weight
    like = torch.empty(0, dtype=weight.dtype, device=weight.device)
    cos, sin = decoder.rotary_emb(like, position_ids=positions.to(weight.device))
    return cos, sin


def rotate(
    keys: Float[Tensor, "*batch kv_heads slots head_dim"],
    cos: Float[Tensor, "rows slots head_dim"],
    sin: Float[Tensor, "rows slots head_dim"],
) -> Float[Tensor, "*batch kv_heads slots head_dim"]:
    """Rotate pre-RoPE keys.

    Args:
        keys: Keys before RoPE, of one layer or, with an axis in front, of several.
        cos: From `model_cos_sin`; one row serves the whole batch, or one row each.
        sin: As `cos`.

    Returns:
        Rotated keys, as the stock cache holds them.
    """
    cos, sin = (part.to(keys.device).unsqueeze(1) for part in (cos, sin))  # (rows, 1, slots, head_dim)
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat((-second, first), dim=-1) * sin
