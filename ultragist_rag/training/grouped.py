"""Attention of many small groups of rows in one forward: windows of documents, and the prompts behind them.

Is        `Members` in, `Groups` out, and the attention function that takes them.
Flow      modeling -> [grouped] -> one_pass.
Change    how groups are sorted into sizes.
Not here  which rows and columns belong together -> one_pass.py.
Holds     equals one call with a mask over all rows and columns of the batch, most of which is empty.
Source    ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ultragist_rag.modeling.split import masked_attention
from ultragist_rag.types import Part

__all__ = ["ALWAYS", "GIST", "NAME", "Grouped", "Groups", "Member", "group", "in_pieces", "register"]

NAME = "ultragist_grouped"
"""Name of the attention function at transformers."""

ALWAYS = -1
"""Order of a column that every row of its group sees."""

GIST = 2**20
"""Added to the order of gists, and to the ranges of gists that rows see."""

_NEVER = -2  # order of padding
_MULTIPLE = 8  # columns are padded to this, which attention kernels like
_FEW = 8  # groups that are not worth a call of their own


class Member(NamedTuple):
    """One group: its rows, what each of them sees, its columns, and the order that this is told in.

    A row sees columns whose order lies in [raw from, raw to) or [gist from, gist to), and those of order `ALWAYS`.
    """

    rows: NDArray[np.int64]
    ranges: NDArray[np.int64]
    columns: NDArray[np.int64]
    order: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """All groups of a batch, padded to a few sizes, one behind the other.

    Attributes:
        sizes: Groups, rows and columns of each size.
        rows: Flat places of the rows among batch * rows, (padded rows).
        target: The same, but behind the last place for padding.
        ranges: What each row sees: raw from, raw to, gist from, gist to; (4, padded rows).
        columns: Flat places of the columns among batch * columns, (padded columns).
        order: Of each column.
    """

    sizes: tuple[tuple[int, int, int], ...]
    rows: Part
    target: Part
    ranges: Part
    columns: Part
    order: Part

    def masks(self) -> list[Tensor]:
        """What rows see of the columns of their group, for each size."""
        masks = []
        ranges = self.ranges.split([n * rows for n, rows, _ in self.sizes], dim=1)
        orders = self.order.split([n * columns for n, _, columns in self.sizes])
        for (n, rows, columns), seen, order in zip(self.sizes, ranges, orders, strict=True):
            raw_from, raw_to, gist_from, gist_to = seen.view(4, n, 1, rows, 1)
            at = order.view(n, 1, 1, columns)
            raw, gist = (at >= raw_from) & (at < raw_to), (at >= gist_from) & (at < gist_to)
            masks.append(raw | gist | (at == ALWAYS))
        return masks


def group(kinds: Sequence[tuple[Sequence[Member], int]], n_rows: int) -> Groups:
    """Sort groups by size, and pad them.

    Args:
        kinds: Members of each kind, whose rows and columns are flat places already, and the most sizes of that kind.
        n_rows: Rows of the batch in all.

    Returns:
        Its groups, on the CPU.
    """
    sizes, parts = [], []
    for members, most in kinds:
        sorted_ = sorted((one for one in members if len(one.rows)), key=lambda one: len(one.columns))
        n_sizes = min(most, -(-len(sorted_) // _FEW))
        for numbers in np.array_split(np.arange(len(sorted_)), n_sizes) if n_sizes else ():
            some = [sorted_[number] for number in numbers]
            most_rows = max(len(one.rows) for one in some)
            most_columns = max(len(one.columns) for one in some)
            most_columns += -most_columns % _MULTIPLE
            sizes.append((len(some), most_rows, most_columns))
            parts += [_padded(one, most_rows, most_columns, n_rows) for one in some]
    rows, target, ranges, columns, order = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    return Groups(
        tuple(sizes),
        torch.from_numpy(rows),
        torch.from_numpy(target),
        torch.from_numpy(ranges),
        torch.from_numpy(columns),
        torch.from_numpy(order),
    )


def _padded(one: Member, n_rows: int, n_columns: int, behind: int) -> tuple[NDArray[Any], ...]:
    """Padding repeats rows and columns of the group itself: their gradients are zero, and spread over many places."""
    target = np.full(n_rows, behind, np.int64)
    target[: len(one.rows)] = one.rows
    order = np.full(n_columns, _NEVER, np.int32)
    order[: len(one.order)] = one.order
    ranges = one.ranges[:, np.arange(n_rows) % len(one.rows)].astype(np.int32)
    return (np.resize(one.rows, n_rows), target, ranges, np.resize(one.columns, n_columns), order)


def register() -> None:
    """Make the attention function known to transformers; doing so twice is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """Groups with their masks, which are made once for all layers."""

    groups: Groups
    masks: Sequence[Tensor]


def _attend(  # noqa: PLR0913 - as transformers calls it
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    *,
    gist_groups: Grouped,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function of transformers; `gist_groups` comes with the window of the forward."""
    del module, attention_mask
    groups = gist_groups.groups
    batch, heads, n_rows, width = query.shape
    row_sizes = [n * rows for n, rows, _ in groups.sizes]
    column_sizes = [n * columns for n, _, columns in groups.sizes]
    queries = _picked(query, groups.rows).split(row_sizes)
    keys, values = (_picked(part, groups.columns).split(column_sizes) for part in (key, value))
    seen = []
    in_half = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    kernel = in_pieces if in_half else scaled_dot_product_attention
    for size, mask, *parts in zip(groups.sizes, gist_groups.masks, queries, keys, values, strict=True):
        one, its_keys, its_values = (part.view(size[0], -1, *part.shape[1:]).transpose(1, 2) for part in parts)
        attended = masked_attention(one, its_keys, its_values, mask, scaling, kernel)
        seen.append(attended.transpose(1, 2).flatten(0, 1))
    found = torch.cat(seen)
    out = found.new_zeros(batch * n_rows + 1, heads, width).index_copy(0, groups.target, found)
    return out[:-1].view(batch, n_rows, heads, width), None


def _picked(part: Tensor, places: Tensor) -> Tensor:
    """Rows of (batch, heads, rows, head_dim) by flat places: (places, heads, head_dim)."""
    return part.transpose(1, 2).flatten(0, 1).index_select(0, places)


def in_pieces(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float | None) -> Tensor:
    """Compute `scaled_dot_product_attention` group by group, so that scores stay in the cache of a processor.

    In bfloat16 the kernel of torch takes more than twice as long backwards; in float32 it is the faster one.

    Args:
        query: Shape (groups, heads, rows, head_dim).
        key: Shape (groups, heads, columns, head_dim).
        value: As `key`.
        attn_mask: What rows see, shape (groups, 1, rows, columns); each sees something.
        scale: Of the scores; None for 1 / sqrt(head_dim).

    Returns:
        Shape as `query`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    found: Tensor = _InPieces.apply(query, key, value, attn_mask, scale)  # type: ignore[no-untyped-call]
    return found


class _InPieces(torch.autograd.Function):
    """Attention of one group after the other, whose probabilities are kept for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        query = query * scale
        with torch.autocast(query.device.type, enabled=False):
            bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
            chances = [
                torch.baddbmm(seen, rows, columns.mT).softmax(-1)
                for rows, columns, seen in zip(query, key, bias, strict=True)
            ]
            found = torch.stack([one @ columns for one, columns in zip(chances, value, strict=True)])
        ctx.save_for_backward(query, key, value, *chances)
        ctx.scale = scale
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *chances = ctx.saved_tensors
        by_query, by_key, by_value = (torch.empty_like(part) for part in (query, key, value))
        for i, (chance, above) in enumerate(zip(chances, upstream[0], strict=True)):
            torch.matmul(chance.mT, above, out=by_value[i])
            by_score = torch._softmax_backward_data(above @ value[i].mT, chance, -1, chance.dtype)
            torch.matmul(by_score, key[i], out=by_query[i])
            torch.matmul(by_score.mT, query[i], out=by_key[i])
        return by_query * ctx.scale, by_key, by_value, None, None
