"""Suite `profile`: where the time of compressing and of a first token goes, by operator.

Is        the largest shares of the operators' own time, as torch's profiler tells them.
Flow      suite -> [profile] -> suites.
Change    what is profiled, how many operators are listed.
Holds     shares are of the time of all operators of the call, so they sum to at most 100.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from benchmarks.record import Row, Spread
from benchmarks.suite import Bench, Suite

__all__ = ["SUITE"]

_TOP = 8
_ROUNDS = 3


def measure(bench: Bench) -> Iterator[Row]:
    """Profile both calls.

    Args:
        bench: What to measure with.

    Yields:
        Shares of the largest operators.
    """
    n_tokens = bench.grid(minimal=40, quick=512, full=512)
    n = bench.grid(minimal=1, quick=8, full=16)
    documents = list(bench.ids(n, n_tokens)[:, None].unbind())
    memories = bench.engine.compress(documents, ratio=8)
    question = bench.ids(1, 32, seed=1)
    calls: dict[str, Callable[[], object]] = {
        "compress": lambda: bench.engine.compress(documents, ratio=8),
        "first token": lambda: bench.engine.generate([*memories, question], max_new_tokens=1, return_ids=True),
    }
    for name in bench.progress(calls):
        shares = [_shares(bench, calls[name]) for _ in range(_ROUNDS)]
        largest = sorted(shares[0], key=lambda operator: -shares[0][operator])[:_TOP]
        for operator in largest:
            yield Row(
                name=f"{name}: {operator}",
                settings={"n": n, "tokens": n_tokens},
                unit="% of the time of all operators",
                better="lower",
                value=Spread.of([one.get(operator, 0.0) for one in shares]),
            )


def _shares(bench: Bench, call: Callable[[], object]) -> dict[str, float]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    call()
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        call()
    events: list[Any] = list(profiler.key_averages())
    field = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    times = {str(event.key): float(getattr(event, field)) for event in events}
    total = sum(times.values())
    return {name: 100 * seconds / total for name, seconds in times.items() if seconds}


SUITE = Suite(
    name="profile",
    title="Where the time goes",
    order=11,
    about=(
        "Each operator's own time, as a share of the time of all operators, while documents of 512 tokens are "
        "compressed, and while the first token over their memories is made. On a GPU it is the time of its kernels."
    ),
    measure=measure,
)
