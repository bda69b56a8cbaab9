"""Say what computed a number: model, machine, versions.

Is        functions of an engine and of what is installed.
Flow      engine -> [environment] -> runner.
Change    what is told.
Holds     plain JSON values, the same whenever it is asked.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from ultragist_rag.engine import UltraGist

__all__ = ["describe", "versions"]


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: metadata.version(name) for name in ("ultragist-rag", "torch", "transformers")}


def describe(engine: UltraGist) -> dict[str, Any]:
    """Describe model and machine.

    Args:
        engine: The model.

    Returns:
        `device`, `versions`, `n_parameters`, `n_positions`, `dtype`, `window`, trained `ratios`: plain JSON values.
    """
    device = next(engine.model.parameters()).device
    cores = os.cpu_count()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {cores} cores ({platform.machine()})"
    return {
        "device": name,
        "versions": versions(),
        "n_parameters": sum(value.numel() for value in engine.model.parameters()),
        "n_positions": engine.max_positions,
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "window": engine.config.window,
        "ratios": [ratio for ratio in engine.config.choices if ratio],
    }
