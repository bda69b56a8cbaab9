"""The projections that gist positions have of their own.

Is        builders for full gist projections (a linear layer, copied) and low-rank ones (base + difference).
Flow      config -> layout -> [modeling] -> memory.
Paper     UltraGist, arXiv 2405.16635: W^g of section 3; the low-rank form is ours, after LoRA, arXiv 2106.09685.
Change    how gist projections are made and initialised.
Not here  when they are used -> attach.py; their names in files -> checkpoint.py.
Holds     a new projection computes what the base projection computes, until it is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.errors import UnsupportedModelError

__all__ = ["LowRankDifference", "gist_rows", "is_quantised", "make_projection"]


class LowRankDifference(nn.Module):
    """A low-rank difference to a base projection: base(x) + up(down(x)).

    Args:
        base: The projection to differ from; it is not owned, so that its weights are saved once.
        rank: Width of the difference.
    """

    def __init__(self, base: Any, rank: int) -> None:
        """Begin with a difference of zero."""
        super().__init__()
        anchor = next(base.parameters())
        dtype = anchor.dtype if anchor.dtype.is_floating_point else torch.float32
        self.down = nn.Linear(base.in_features, rank, bias=False, device=anchor.device, dtype=dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=anchor.device, dtype=dtype)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the difference alone."""
        difference: Tensor = self.up(self.down(hidden.to(self.down.weight.dtype)))
        return difference


def is_quantised(base: Any) -> bool:
    """Tell whether a projection holds its weights in a packed format that cannot be copied."""
    weight = getattr(base, "weight", None)
    return not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dim() != 2


def make_projection(base: Any, rank: int | None) -> nn.Module:
    """Make the gist projection beside a base projection, equal to it.

    Args:
        base: A linear layer, quantised or not.
        rank: None for a full copy, else the rank of the difference.

    Returns:
        The gist projection, on the device of the base.

    Raises:
        UnsupportedModelError: If the base is quantised and no rank is given.
    """
    if rank is not None:
        return LowRankDifference(base, rank)
    if is_quantised(base):
        raise UnsupportedModelError(
            f"{type(base).__name__} holds quantised weights, which a full gist projection cannot copy. "
            "Set GistConfig.rank (for example 32), or load the model unquantised."
        )
    bias = getattr(base, "bias", None)
    weight = base.weight
    copy = nn.Linear(base.in_features, base.out_features, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        copy.weight.copy_(weight)
        if bias is not None:
            copy.bias.copy_(bias)
    return copy


def gist_rows(projection: nn.Module, hidden: Tensor, output: Tensor, rows: Tensor) -> Tensor:
    """Replace the output of a base projection in the gist rows.

    Args:
        projection: The gist projection.
        hidden: Input of the base projection, shape (batch, tokens, in).
        output: Output of the base projection, shape (batch, tokens, out).
        rows: Places of the gists in the flattened (batch * tokens) rows.

    Returns:
        The output, with gist rows projected by the gist projection.
    """
    chosen = hidden.flatten(0, 1).index_select(0, rows)
    flat = output.flatten(0, 1)
    mine = projection(chosen)
    if isinstance(projection, LowRankDifference):
        mine = flat.index_select(0, rows) + mine.to(flat.dtype)
    if torch.is_grad_enabled():
        return flat.index_copy(0, rows, mine.to(flat.dtype)).view_as(output)
    return flat.index_copy_(0, rows, mine.to(flat.dtype)).view_as(
        output
    )  # the projection just made it: nobody else has it
