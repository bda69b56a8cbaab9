"""Records for the tests of the benchmarks."""

from __future__ import annotations

from benchmarks.record import Machine, Record, Row, Spread
from benchmarks.suites.compress import CPU_BAR


def sample_machine() -> Machine:
    numbers = {"matmul_flops": 1.5e11, "copy_bytes": 2.5e10}
    return Machine(
        kind="cpu",
        device="CPU",
        cpu="some CPU",
        n_cores=2,
        n_threads=2,
        dtype="float32",
        versions={"torch": "2"},
        **numbers,
    )


def sample_record() -> Record:
    rows = []
    for tokens in (128, 512):
        fast, slow = Spread.of([900.0, 1000.0, 1100.0]), Spread.of([1200.0, 1250.0, 1500.0])
        row = Row(
            name="compress",
            settings={"tokens": tokens, "batch": 1, "ratio": 8},
            unit="tokens/s",
            better="higher",
            value=fast,
            baseline="plain prefill",
            ratio=Spread.of([0.7, 0.9, 1.0], 0.81),
            floor="the work",
            floor_value=4000.0,
        )
        rows.append(CPU_BAR.judge(row))
        plain = {"name": "plain prefill", "settings": row.settings, "unit": "tokens/s"}
        rows.append(Row(**plain, better="higher", value=slow))
    return Record(
        suite="compress",
        shape="bundled",
        model={"parameters": 9_000_000},
        size="quick",
        command="python -m benchmarks run",
        date="2026-11-26T00:00+00:00",
        machine=sample_machine(),
        rows=rows,
        notes=["One cell was left out."],
    )
