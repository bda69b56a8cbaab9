"""Save and load the state of a training run: weights, optimiser, step. No pickle.

Is        tensors to safetensors, numbers to JSON, written beside the old state and then renamed.
Flow      [checkpoint] <- loop.
Holds     a run that is stopped and resumed computes the numbers of one that was not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.processes import alike, whole

_STATE = "state.json"


def save_state(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    note: str,
    *,
    write: bool = True,
) -> None:
    """Write the state so that `folder` always holds a whole one. Tensors that lie in parts are put together.

    Args:
        folder: Where the state lies; replaced as a whole.
        step: Optimiser steps done.
        weights: Trained tensors by name.
        optimizers: In the order of the run.
        note: Text that a resumed run must repeat: its settings.
        write: Whether this process writes; all must call, since they put the tensors together.
    """
    files = {"weights": {name: whole(tensor.detach()) for name, tensor in weights.items()}}
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()["state"]
        files[f"optimizer{number}"] = {
            f"{index}.{key}": whole(torch.as_tensor(value))
            for index, entry in state.items()
            for key, value in entry.items()
        }
    if not write:
        return
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, tensors in files.items():
        copies = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(copies, fresh / f"{name}.safetensors")
    (fresh / _STATE).write_text(json.dumps({"step": step, "note": note}), encoding="utf-8")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    Path(fresh).replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_weights(path: Path, weights: Mapping[str, Tensor], *, write: bool = True) -> None:
    """Write trained tensors alone, whole.

    Args:
        path: A safetensors file; replaced as a whole.
        weights: Tensors by name.
        write: Whether this process writes; all must call.
    """
    tensors = {name: whole(tensor.detach()).contiguous().clone() for name, tensor in weights.items()}
    if write:
        fresh = path.with_name(path.name + ".new")
        save_file(tensors, fresh)
        fresh.replace(path)


@torch.no_grad()
def mix_in(path: Path, weights: Mapping[str, Tensor], share: float) -> None:
    """Replace weights by their average with saved ones. All processes of a run must call it together.

    Paper: WiSE-FT, arXiv 2109.01903: what was learned last without losing what was known before.

    Args:
        path: From `save_weights`.
        weights: Tensors by name.
        share: Of the saved ones.

    Raises:
        TrainingError: If the file is missing or damaged.
    """
    try:
        saved = load_file(path)
        for name, tensor in weights.items():
            tensor.lerp_(alike(saved[name].to(tensor), tensor), share)
    except (OSError, KeyError, SafetensorError) as error:
        raise TrainingError(
            f"{path} does not hold the weights before this stage: {error}. Start the run over."
        ) from error


def load_state(
    folder: Path, weights: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer], note: str
) -> int:
    """Put a saved state back; return the steps done, 0 if there is none. All processes of a run must call it together.

    Raises:
        TrainingError: If the state is damaged, or belongs to other settings.
    """
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and old.exists():
        with suppress(FileNotFoundError):  # another process of the run was quicker
            old.rename(folder)
    if not folder.exists():
        return 0
    try:
        state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        saved = load_file(folder / "weights.safetensors")
        moments = [load_file(folder / f"optimizer{number}.safetensors") for number in range(len(optimizers))]
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(
            f"the training state in {folder} is damaged: {error}. Delete the folder to start over."
        ) from error
    if state["note"] != note:
        raise TrainingError(f"{folder} holds a run with other settings. Choose another output, or delete it.")
    if set(saved) != set(weights):
        raise TrainingError(f"{folder} holds other tensors than the model. Choose another output, or delete it.")
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(alike(saved[name].to(tensor.dtype), tensor))
    for optimizer, tensors in zip(optimizers, moments, strict=True):
        settings = optimizer.state_dict()
        optimized = [weight for group in optimizer.param_groups for weight in group["params"]]
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            weight = optimized[int(index)]
            entries.setdefault(int(index), {})[key] = alike(tensor, weight) if tensor.shape == weight.shape else tensor
        optimizer.load_state_dict({**settings, "state": entries})
    return int(state["step"])
