"""Muon in float32: momentum whose matrix is made orthogonal before it is applied.

Is        one optimiser for weight matrices. `torch.optim.Muon` orthogonalises in bfloat16, which processors without
          bfloat16 units emulate about thirty times more slowly; this one works in the weights' own precision.
Paper     Muon, K. Jordan et al. 2024 (quintic Newton-Schulz iteration); step size matched to AdamW's, arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_MATCH = 0.2  # root mean square of an AdamW update, which the orthogonal step is scaled to


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest matrix with all singular values near one, by Newton-Schulz iteration.

    Args:
        matrix: Any matrix, (rows, columns).
        steps: Iterations; five bring the singular values into about [0.7, 1.2].

    Returns:
        A matrix of the same shape.
    """
    wide: Tensor = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x if matrix.shape[0] <= matrix.shape[1] else x.T
    return result


class Muon(torch.optim.Optimizer):
    """Muon for two-dimensional weights; give embeddings, norms and biases to another optimiser.

    Args:
        params: Matrices.
        lr: Learning rate, on AdamW's scale.
        momentum: Of the Nesterov average.
        weight_decay: Decoupled.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on the gradients at hand."""
        del closure
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(average, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * _MATCH * max(weight.shape) ** 0.5)
