"""What a machine is, and what it can do at best.

Is        names and versions, and three measured limits: matrix products, copies in memory, copies to the device.
Flow      record, timing -> [machine] -> run.
Change    which limits are measured, on which sizes.
Not here  which limit a row is held against -> suites/.
Holds     a limit is the fastest of several sizes, each in the number format of the weights.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import ultragist_rag
from benchmarks.record import Machine
from benchmarks.timing import paired, synchroniser

__all__ = ["device_kind", "measure_machine"]

_GPU_SIDES = (4096, 8192, 12288)
_CPU_SIDES = (512, 1024, 2048)
_GPU_COPY, _CPU_COPY = 1 << 30, 1 << 27
_SECONDS = 0.5
"""For each size."""


def measure_machine(device: torch.device, dtype: torch.dtype, *, small: bool = False) -> Machine:
    """Name a machine and measure its limits.

    Args:
        device: Where the model computes.
        dtype: Number format of the weights.
        small: Take small sizes, for tests.

    Returns:
        What it is and can do.
    """
    on_gpu = device.type == "cuda"
    sides = (64,) if small else _GPU_SIDES if on_gpu else _CPU_SIDES
    n_bytes = 1 << 16 if small else _GPU_COPY if on_gpu else _CPU_COPY
    seconds = 0.0 if small else _SECONDS
    return Machine(
        kind=device_kind(device),
        device=torch.cuda.get_device_name(device) if on_gpu else "CPU",
        cpu=_cpu_name(),
        n_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        n_threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        versions={
            "ultragist-rag": ultragist_rag.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        matmul_flops=max(_matmul(side, device, dtype, seconds) for side in sides),
        copy_bytes=2 * _copy(n_bytes, device, device, seconds),
        upload_bytes=_copy(n_bytes, torch.device("cpu"), device, seconds) if on_gpu else None,
    )


def device_kind(device: torch.device) -> str:
    """Name the kind of a device as a part of file names: `cpu`, or `h200` and the like."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device).lower().replace("nvidia", "")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def _matmul(side: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    left, right = (torch.randn((side, side), device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _best(lambda: torch.mm(left, right, out=out), device, seconds)


def _copy(n_bytes: int, source: torch.device, target: torch.device, seconds: float) -> float:
    pinned = source != target
    there = torch.zeros(n_bytes, dtype=torch.uint8, device=source, pin_memory=pinned)
    here = torch.zeros(n_bytes, dtype=torch.uint8, device=target)
    return n_bytes / _best(lambda: here.copy_(there, non_blocking=True), target, seconds)


def _best(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    with torch.inference_mode():
        timed = paired({"run": run}, synchronise=synchroniser(device), seconds=seconds, at_least=5, at_most=100)
    return timed.seconds("run").median


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
