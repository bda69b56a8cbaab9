"""Muon: momentum whose matrix is made orthogonal before it is applied.

Is        one optimiser for weight matrices. `torch.optim.Muon` always orthogonalises in bfloat16, which processors
          without bfloat16 units emulate about thirty times more slowly; this one works in the precision it is told.
Paper     Muon, K. Jordan et al. 2024 (quintic Newton-Schulz iteration); step size matched to AdamW's, arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_MATCH = 0.2  # root mean square of an AdamW update, which the orthogonal step is scaled to


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest matrices with all singular values near one, by Newton-Schulz iteration.

    Args:
        matrices: One matrix, (rows, columns), or several, (matrices, rows, columns).
        steps: Iterations; five bring the singular values into about [0.7, 1.2].

    Returns:
        As many of the same shape, computed in the precision given.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon for two-dimensional weights; give embeddings, norms and biases to another optimiser.

    Args:
        params: Matrices.
        lr: Learning rate, on AdamW's scale.
        momentum: Of the Nesterov average.
        weight_decay: Decoupled.
        dtype: Of the matrices while they are made orthogonal; None for that of the weights.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on the gradients at hand."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                for weight in weights:
                    if not self.state[weight]:
                        self.state[weight]["momentum"] = torch.zeros_like(weight)
                gradients = torch.stack([weight.grad for weight in weights if weight.grad is not None])
                averages = [self.state[weight]["momentum"] for weight in weights]
                torch._foreach_lerp_(averages, list(gradients), 1 - group["momentum"])
                directions = gradients.lerp(torch.stack(averages), group["momentum"])
                updates = orthogonalise(directions.to(self._dtype or directions.dtype)).to(directions.dtype)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(updates), alpha=-group["lr"] * _MATCH * max(shape) ** 0.5)
