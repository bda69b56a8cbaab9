"""Run suites and write their results.

Is        device and number format by name, the machine measured once, one file for each suite that is done.
Flow      machine, shapes, suite, suites -> [run] -> __main__.
Change    how much time a suite has.
Holds     a suite that fails leaves no file, and those of others as they are.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.machine import measure_machine
from benchmarks.record import Record
from benchmarks.shapes import Shape, model_facts
from benchmarks.suite import Bench, Size, Suite
from ultragist_rag.errors import InputError

__all__ = ["SECONDS", "find_device", "find_dtype", "make_bench", "run_suite", "run_suites"]

SECONDS = {"minimal": 0.0, "quick": 20.0, "full": 60.0}
"""What a suite may spend on rounds beyond the third, by size of its grid."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def find_device(name: str) -> torch.device:
    """Find a device: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Args:
        name: Its name.

    Returns:
        The device.

    Raises:
        InputError: If it is unknown or not there.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise InputError(f"device {name!r} is unknown. Known are auto, cpu, cuda.")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("device is 'cuda', but torch finds no GPU. Use --device cpu.")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Find a number format: by name, or `auto` for bfloat16 on a GPU and float32 on a CPU.

    Args:
        name: Its name.
        device: Where it is used.

    Returns:
        The format.

    Raises:
        InputError: If it is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"dtype {name!r} is unknown. Known are auto, {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def make_bench(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    size: Size,
    seconds: float | None = None,
    repeats: int | None = None,
) -> Bench:
    """Measure the machine and make what suites measure with.

    Args:
        shape: Model shape.
        device: Where to compute.
        dtype: Number format.
        size: Of the grids.
        seconds: For each suite; None for what belongs to the size.
        repeats: Rounds at most.

    Returns:
        The bench, without a model yet.
    """
    machine = measure_machine(device, dtype, small=size == "minimal")
    given = SECONDS[size] if seconds is None else seconds
    return Bench(shape=shape, device=device, dtype=dtype, machine=machine, size=size, seconds=given, repeats=repeats)


def run_suite(suite: Suite, bench: Bench) -> Record:
    """Run one suite.

    Args:
        suite: The suite.
        bench: What it measures with.

    Returns:
        What it measured.
    """
    bench.notes = []
    rows = list(suite.measure(bench))
    return Record(
        suite=suite.name,
        shape=bench.shape.name,
        model=model_facts(bench.engine),
        size=bench.size,
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        machine=bench.machine,
        rows=rows,
        notes=bench.notes,
    )


def run_suites(suites: Sequence[Suite], bench: Bench, folder: Path) -> list[Path]:
    """Run suites, and write the file of each as soon as it is done.

    Args:
        suites: The suites.
        bench: What they measure with.
        folder: For the files.

    Returns:
        The files.
    """
    return [run_suite(suite, bench).write(folder) for suite in suites]
