"""Measure one batch of every stage and mode, before a run is begun.

Is        parameters and tokens counted, seconds and memory of one batch each measured, hours worked out from them.
Flow      config, combined -> [dry_run] -> loop -> cli.
Change    what is measured.
Not here  the same figures worked out from a base's shape, without weights or data -> forecast.py.
Holds     a measured figure says how it was measured; nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from ultragist_rag.training.combined import Combined
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.drawing import Batch, Drawn

__all__ = ["Measured", "TrainReport", "bytes_of_training", "is_matrix", "measure"]

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Measured:
    """One batch of a stage in a mode.

    Attributes:
        stage: Name of the stage.
        mode: How the batch is read.
        share: Of the stage's batches.
        tokens: Raw tokens of the batch.
        seconds: Forward and backward of the batch.
        activation_bytes: Most that forward and backward took beyond weights and gradients; None where it cannot be
            measured.
    """

    stage: str
    mode: str
    share: float
    tokens: int
    seconds: float
    activation_bytes: int | None


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a dry run finds.

    Attributes:
        n_parameters: Of the model and the decoder of autoencoding.
        n_trained: Of these, those that are trained.
        n_steps: Optimiser steps.
        n_tokens: Raw tokens of all stages, about.
        stage_tokens: The same by stage.
        weight_bytes: Of all parameters.
        gradient_bytes: Of the trained ones' gradients.
        optimizer_bytes: Of the optimiser's moments.
        activation_bytes: Most that a batch took, gradients left out; None where it cannot be measured.
        memory_measured_by: How `activation_bytes` was measured.
        memory_bytes: All of it together, on one device.
        step_seconds: By stage, the mean over its modes.
        hours: Of all steps at the measured seconds, without optimiser steps and checkpoints.
        batches: What was measured.
    """

    n_parameters: int
    n_trained: int
    n_steps: int
    n_tokens: int
    stage_tokens: dict[str, int]
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    memory_measured_by: str
    memory_bytes: int
    step_seconds: dict[str, float]
    hours: float
    batches: tuple[Measured, ...]


def bytes_of_training(objective: Combined, optimizer: str) -> tuple[int, int, int]:
    """Count the bytes of weights, of gradients, and of the optimiser's moments.

    Args:
        objective: All that is trained or used.
        optimizer: `muon` keeps one moment of a matrix, `adamw` two of everything.

    Returns:
        The three.
    """
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    gradients = moments = 0
    for name, p in objective.trained().items():
        n_bytes = p.numel() * p.element_size()
        gradients += n_bytes
        moments += n_bytes * (1 if optimizer == "muon" and is_matrix(name, p) else 2)
    return weights, gradients, moments


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes a parameter."""
    return parameter.dim() == 2 and "embed" not in name


def measure(
    config: TrainConfig,
    objective: Combined,
    drawn: Drawn,
    autocast: Callable[[], AbstractContextManager[None]],
) -> TrainReport:
    """Run one batch of every stage and mode forward and backward, after a smaller one to warm up.

    Args:
        config: The run.
        objective: Gives the loss of a batch.
        drawn: Draws the batches.
        autocast: Number formats of the forward.

    Returns:
        What was counted and measured.
    """
    memory = _Peak()
    measured = [
        _measure(memory, objective, [drawn.batch(stage, 0, mode, most) for most in (2, None)], autocast)
        for stage in config.stages
        for mode in stage.modes
    ]
    weights, gradients, moments = bytes_of_training(objective, config.optimizer)
    known = [entry.activation_bytes for entry in measured if entry.activation_bytes is not None]
    stage_tokens = config.stage_tokens
    seconds = {
        stage.name: config.accumulate * sum(e.share * e.seconds for e in measured if e.stage == stage.name)
        for stage in config.stages
    }
    return TrainReport(
        n_parameters=sum(p.numel() for p in objective.parameters()),
        n_trained=sum(p.numel() for p in objective.trained().values()),
        n_steps=config.n_steps,
        n_tokens=sum(stage_tokens.values()),
        stage_tokens=stage_tokens,
        weight_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=moments,
        activation_bytes=max(known) if known else None,
        memory_measured_by=_Peak.how() if known else "not measured: this system does not tell it",
        memory_bytes=weights + gradients + moments + max(known, default=0),
        step_seconds=seconds,
        hours=sum(stage.steps * seconds[stage.name] for stage in config.stages) / 3600,
        batches=tuple(measured),
    )


def _measure(
    memory: _Peak,
    objective: Combined,
    batches: Sequence[Batch],
    autocast: Callable[[], AbstractContextManager[None]],
) -> Measured:
    """Run a small batch, then the whole one, which is measured; leave no gradients."""
    for batch in batches:
        objective.zero_grad(set_to_none=True)
        memory.reset()
        began = time.perf_counter()
        with autocast():
            value, _ = objective(batch)
        value.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    growth = memory.growth()
    if growth is not None:
        growth = max(0, growth - _gradient_bytes(objective))
    objective.zero_grad(set_to_none=True)
    stage = batch.stage
    share = stage.modes[batch.mode] / sum(stage.modes.values())
    return Measured(stage.name, batch.mode, share, batch.n_tokens, seconds, growth)


def _gradient_bytes(objective: Combined) -> int:
    grads = (p.grad for p in objective.parameters())
    return sum(grad.numel() * grad.element_size() for grad in grads if grad is not None)


class _Peak:
    """Most memory since the last reset, beyond what was taken at first; without CUDA the process', known on Linux.

    What a process has freed it may still hold, so of several batches only the largest is exact there.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        if torch.cuda.is_available():
            self._before = torch.cuda.memory_allocated()
        elif _STATUS.is_file():
            self._before = _resident("VmRSS")
        self.reset()

    def reset(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif self._before is not None:
            try:
                (_STATUS.parent / "clear_refs").write_text("5", encoding="ascii")  # resets the peak
            except OSError:  # a sandbox may forbid it
                self._before = None

    @staticmethod
    def how() -> str:
        return "torch.cuda.max_memory_allocated" if torch.cuda.is_available() else "peak growth of the process"

    def growth(self) -> int | None:
        if self._before is None:
            return None
        return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")) - self._before


def _resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
