"""Suite `soak`: whether the process grows while it answers request after request.

Is        resident memory of the process, sampled over thousands of short requests; on a GPU its memory too.
Flow      suite -> [soak] -> suites.
Change    what a request is, how much growth is too much.
Holds     what is compared comes after the warm-up; a memory that is not in the pool any more is held nowhere.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.record import Row, Spread
from benchmarks.suite import Bar, Bench, Plot, Suite
from ultragist_rag import GistMemory

__all__ = ["SUITE"]

CPU_BAR = Bar(
    name="soak: growth of the process between request 1,000 and request 10,000, in MiB",
    on="cpu",
    shape="bundled",
    of="value",
    at_most=8.0,
)
_MIB = 2**20
_N_SAMPLES = 10
"""Samples at each end that growth is told from."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many requests, and which.

    Attributes:
        requests: In all.
        warm: Requests before the first sample that counts.
        every: Requests between two samples.
        renew: Requests between two documents that are compressed.
        tokens: Of a document.
        pool: Memories that requests choose from.
    """

    requests: int = 10_000
    warm: int = 1_000
    every: int = 50
    renew: int = 100
    tokens: int = 128
    pool: int = 32


def measure(bench: Bench) -> Iterator[Row]:
    """Send requests, and sample memory.

    Args:
        bench: What to measure with.

    Yields:
        Growth, memory at ten places, and the time of a request.
    """
    few, whole = _Plan(60, 10, 2, 10, 40, 4), _Plan()
    plan = bench.grid(minimal=few, quick=whole, full=whole)
    meters: dict[str, Callable[[], int]] = {"process": resident_bytes}
    if bench.on_gpu:
        meters["GPU"] = lambda: torch.cuda.memory_allocated(bench.device)
    samples: dict[str, list[int]] = {name: [] for name in meters}
    times = []
    for number in _requests(bench, plan):
        times.append(time.perf_counter())
        if number % plan.every == 0:
            for name, meter in meters.items():
                samples[name].append(meter())
    for name, taken in samples.items():
        yield from _memory_rows(bench, plan, name, taken)
    yield _speed(plan, times)


def _requests(bench: Bench, plan: _Plan) -> Iterator[int]:
    """Answer with one new token, two memories of a pool and a question; now and then a document takes another's place.

    Yields:
        The number of each request that was answered, from 1 on.
    """
    engine, draw = bench.engine, random.Random(0)
    words = int(engine.model.config.vocab_size)

    def made(seed: int) -> GistMemory:
        return engine.compress(bench.ids(1, plan.tokens, seed), ratio=8)

    pool = [made(seed) for seed in range(plan.pool)]
    for number in bench.progress(range(1, plan.requests + 1)):
        if number % plan.renew == 0:
            pool[draw.randrange(plan.pool)] = made(number)
        question = torch.tensor([[draw.randrange(3, words) for _ in range(draw.randint(2, 6))]])
        engine.generate([*draw.sample(pool, 2), question.to(bench.device)], max_new_tokens=1, return_ids=True)
        yield number


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import psutil  # type: ignore[import-untyped, unused-ignore] # where there is no /proc

        return int(psutil.Process().memory_info().rss)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _memory_rows(bench: Bench, plan: _Plan, name: str, taken: list[int]) -> Iterator[Row]:
    first = plan.warm // plan.every
    begin, end = taken[first : first + _N_SAMPLES], taken[-_N_SAMPLES:]
    # Memory is counted in pages: what did not grow, or shrank, is shown as one of them.
    grown = [max(late - early, os.sysconf("SC_PAGE_SIZE")) / _MIB for early, late in zip(begin, end, strict=True)]
    growth = Row(
        name=f"growth, {name}",
        settings={"requests": plan.requests, "from": plan.warm},
        unit="MiB grown",
        better="lower",
        value=Spread.of(grown),
    )
    yield bench.held(growth, CPU_BAR) if name == "process" else growth
    step = max(1, len(taken) // 10)
    for start in range(0, len(taken) - step + 1, step):
        yield Row(
            name=f"memory, {name}",
            settings={"requests": (start + step) * plan.every},
            unit="MiB",
            better="lower",
            value=Spread.of([one / _MIB for one in taken[start : start + step]]),
        )


def _speed(plan: _Plan, times: list[float]) -> Row:
    step = max(1, len(times) // 20)
    ends = times[::step]
    return Row(
        name="requests one after the other",
        settings={"requests": plan.requests},
        unit="requests/s",
        better="higher",
        value=Spread.of([step / (late - early) for early, late in pairwise(ends)]),
    )


SUITE = Suite(
    name="soak",
    title="Memory of a long-lived process",
    order=8,
    about=(
        "10,000 requests, one after the other: one new token behind two memories of a pool and a short question; "
        "every 100 requests a new document of 128 tokens is compressed and takes the place of another. Resident "
        "memory of the process is sampled every 50 requests. Growth is the difference between ten samples after "
        "request 1,000, when caches and allocators are warm, and the last ten; the spread is over these ten. The bar "
        "of 8 MiB is less than 1 KiB for each request: a leak of a memory, a prompt or a tensor would be more, the "
        "allocator's own coming and going is less."
    ),
    measure=measure,
    bars=(CPU_BAR,),
    plots=(Plot(name="requests", x="requests", unit="MiB"),),
)
