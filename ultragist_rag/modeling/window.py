"""Window: what one forward carries to the hooks, and what they bring back.

Is        a parcel that travels through the model as a keyword: where gists are, what lies in front, what came out.
Flow      types -> [modeling] -> memory. Imports torch only.
Change    what hooks need to know about a forward.
Not here  the hooks -> attach.py.
Holds     the past is never written to, so a layer may run twice (gradient checkpointing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Window", "take_rows"]


def take_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Pick rows of each sequence.

    Args:
        values: Shape (batch, rows, ...).
        rows: Which, shape (batch, n).

    Returns:
        Shape (batch, n, ...).
    """
    wide = rows.to(values.device).view(*rows.shape, *(1,) * (values.dim() - 2))
    return values.gather(1, wide.expand(-1, -1, *values.shape[2:]))


class Window:
    """The gist rows and the past of one forward, and the keys and values captured in it.

    Args:
        n_layers: Layers of the model.
        rows: Places of the gists in the flattened (batch * tokens) rows; None for no gists.
        past: Rotated keys and values of each layer that stand in front; None for none.
        kept: Rows whose keys and values are captured, shape (batch, kept); None for all.
    """

    def __init__(
        self,
        n_layers: int,
        rows: Tensor | None = None,
        past: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
        kept: Tensor | None = None,
    ) -> None:
        """Begin with nothing captured."""
        self.rows = rows
        self.past = past
        self.kept = kept
        self.attention: tuple[str, dict[str, Any]] | None = None  # another attention function, and keywords for it
        self.keys: list[Tensor | None] = [None] * n_layers
        self.values: list[Tensor | None] = [None] * n_layers

    @classmethod
    def of_mask(cls, n_layers: int, mask: Tensor) -> Window:
        """Make a window from a gist mask of shape (batch, tokens)."""
        return cls(n_layers, mask.flatten().nonzero().squeeze(1) if bool(mask.any()) else None)

    def capture(self, store: list[Tensor | None], layer: int, rows: Tensor) -> None:
        """Keep rows of a layer, given as (batch, rows, kv_heads, head_dim)."""
        store[layer] = (rows if self.kept is None else take_rows(rows, self.kept)).transpose(1, 2)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stand in for a cache: put the past of a layer in front of its new rotated keys and values."""
        if self.past is None:
            return keys, values
        past_keys, past_values = self.past[0][layer], self.past[1][layer]
        return torch.cat((past_keys.to(keys), keys), dim=2), torch.cat((past_values.to(values), values), dim=2)

    def get_seq_length(self, *_: Any) -> int:
        """Count the slots in front, as a cache does."""
        return 0 if self.past is None else int(self.past[0][0].shape[2])
