"""Tensor types with named axes, in one place.

Is        aliases for the shapes that cross module borders; checked by jaxtyping in tests only, never at run time.
Flow      config, types -> layout -> modeling -> memory. Imports torch, NumPy and jaxtyping only.
Change    add an alias when a shape crosses a module border.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "BatchIds",
    "BatchMask",
    "Hidden",
    "KeptMask",
    "KeptRows",
    "LayerKV",
    "Logits",
    "Part",
    "PastPositions",
    "RaggedIds",
    "SoftRows",
    "TokenIds",
    "VisibilityMask",
]

TokenIds = Int[Tensor, "tokens"]
"""Token ids of one sequence, without a batch axis."""

RaggedIds = Int[Tensor, "_"]
"""Token ids of one of several sequences, whose lengths differ."""

BatchIds = Int[Tensor, "batch tokens"]
"""Token ids of several sequences of one length."""

BatchMask = Bool[Tensor, "batch tokens"]
"""One flag for each token of a batch."""

Hidden = Float[Tensor, "batch rows hidden"]
"""Hidden states of the rows of a step."""

LayerKV = Float[Tensor, "1 kv_heads slots head_dim"]
"""Keys (before RoPE) or values of one layer of one memory."""

Logits = Float[Tensor, "batch tokens vocab"]
"""Scores over the vocabulary."""

if TYPE_CHECKING:
    Part = Tensor
else:
    Part = Tensor | np.ndarray
"""A tensor of a planned batch; an array on its way from one process to another."""

PastPositions = Int[Tensor, "one_or_batch past"]
"""Positions of slots in front; one row serves the whole batch."""

SoftRows = Float[Tensor, "batch soft hidden"]
"""Soft embeddings in front of the rows of a step, padded at the end."""

KeptRows = Int[Tensor, "batch kept"]
"""Numbers of some rows of each sequence."""

KeptMask = Bool[Tensor, "batch 1 kept keys"]
"""What these may attend to."""

VisibilityMask = Bool[Tensor, "batch 1 queries keys"]
"""What each query may attend to: True is visible."""
