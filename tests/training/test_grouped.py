"""Attention group by group is that of one call, forwards and backwards, also in a lower precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ultragist_rag.modeling.split import masked_attention
from ultragist_rag.training.grouped import in_pieces


def outcome(kernel: Callable[..., Tensor], kv_heads: int, scale: float | None, autocast: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4, 7, 8), (3, kv_heads, 9, 8), (3, kv_heads, 9, 8), (3, 4, 7, 8))
    *parts, upstream = (torch.randn(shape, generator=generator) for shape in shapes)
    mask = torch.rand(3, 1, 7, 9, generator=generator) < 0.4
    mask[..., 0] = True
    query, key, value = (part.requires_grad_() for part in parts)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = masked_attention(query, key, value, mask, scale, kernel)
    assert found.dtype == (torch.bfloat16 if autocast else torch.float32)
    (found * upstream).sum().backward()  # type: ignore[no-untyped-call]
    return [part.float() for part in (found, query.grad, key.grad, value.grad) if part is not None]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-6), (True, 3e-2)])
def test_groups_one_by_one_are_as_all_at_once(
    kv_heads: int, scale: float | None, autocast: bool, tolerance: float
) -> None:
    mine = outcome(in_pieces, kv_heads, scale, autocast)
    theirs = outcome(scaled_dot_product_attention, kv_heads, scale, False)
    assert len(mine) == len(theirs) == 4
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def test_no_gradients_are_asked_for() -> None:
    part = torch.randn(1, 2, 3, 4)
    with torch.no_grad():
        found = in_pieces(part, part, part, torch.ones(1, 1, 3, 3, dtype=torch.bool), None)
    torch.testing.assert_close(found, scaled_dot_product_attention(part, part, part))
