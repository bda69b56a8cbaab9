"""One batch over several processes: who takes which rows, how much each counts, tensors whole and in parts.

Is        what the loop needs beside accelerate to compute the numbers of one process with many (DDP, FSDP version 2).
Flow      [processes] -> checkpoint, setup, combined, loop.
Change    which ways of sharding are let through.
Holds     the gradients of a step are those of the batch's loss over all rows, however many processes share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.errors import TrainingError

__all__ = ["alike", "check_sharding", "drop_untouched", "share_of", "touch_all", "unshard", "whole"]


def check_sharding(accelerator: Any) -> None:
    """Refuse ways of FSDP under which processes would wait for each other for ever, or whose state cannot be kept.

    Documents of one process may take more windows than those of another, so weights are gathered once per batch, not
    once per layer and window.

    Raises:
        TrainingError: If FSDP is of version 1, or wraps layers.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise TrainingError(f"FSDP has version {plugin.fsdp_version}. Set fsdp_version: 2 in the accelerate config.")
    if plugin.auto_wrap_policy is not None and "no_wrap" not in str(plugin.auto_wrap_policy).lower():
        raise TrainingError(
            f"FSDP wraps layers ({plugin.auto_wrap_policy}), which gathers weights once per layer and window, but "
            "processes read different numbers of windows. Set fsdp_auto_wrap_policy: NO_WRAP in the accelerate config."
        )


def share_of(weight: Tensor, accelerator: Any) -> float:
    """How much the loss of this process counts, so that the mean over processes is the loss over all rows.

    Args:
        weight: Sum of the token weights that this process' loss is a mean over.
        accelerator: Of the run; all processes must call this together.
    """
    if accelerator.num_processes == 1:
        return 1.0
    total = float(accelerator.reduce(weight.to(accelerator.device), "sum"))
    return float(accelerator.num_processes * weight / max(total, 1e-6))


def touch_all(value: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Add nothing, so that every trained parameter has a gradient in every process: they wait for each other's."""
    firsts = [parameter.flatten()[0].to(value) for parameter in parameters if parameter.requires_grad]
    return value + 0 * torch.stack(firsts).sum()


def drop_untouched(parameters: Sequence[Tensor], accelerator: Any) -> None:
    """Take away gradients that are zero in all processes, which one process would not have: optimisers skip these."""
    if accelerator.num_processes == 1:
        return
    local = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    flags = accelerator.reduce(torch.stack([part.any() for part in local]).int(), "sum").tolist()
    for parameter, flag in zip([p for p in parameters if p.grad is not None], flags, strict=True):
        if not flag:
            parameter.grad = None


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may lie in parts over the processes, which must call this together."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def alike(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Lay a whole tensor out over the processes as `pattern` is laid out."""
    if not hasattr(pattern, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


def unshard(module: nn.Module) -> None:
    """Give every process whole parameters again, for good; parameters that are one stay one."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if hasattr(parameter, "full_tensor"):
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
                setattr(part, name, made[id(parameter)])


def _local(tensor: Tensor) -> Tensor:
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
