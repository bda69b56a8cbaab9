"""Suite `compress`: making memories of documents, against reading the same tokens by the plain model.

Is        tokens per second by length, batch and ratio, and peak memory on a GPU.
Flow      suite, flops -> [compress] -> suites.
Change    the grids, the bars.
Holds     the baseline is the stock model: no hooks, no mask, sdpa, a growing cache, logits of the last token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.flops import compress_flops, prefill_flops
from benchmarks.record import Row, Setting, Spread
from benchmarks.suite import Bar, Bench, Plot, Suite

__all__ = ["SUITE"]

_SLOWEST = 1.25
CPU_BAR = Bar(
    name=f"compress: at most {_SLOWEST} times the time of plain prefill per token, ratio 8, every length and batch",
    on="cpu",
    shape="bundled",
    of="ratio",
    at_least=1 / _SLOWEST,
)
GPU_BAR = Bar(
    name="compress: share of the measured matmul rate, documents of 512 tokens, ratio 8, best batch",
    on="gpu",
    shape="llama-3-8b",
    of="share",
    at_least=0.55,
    judged="best",
)
_BAR_RATIO, _BAR_TOKENS = 8, 512


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid."""

    tokens: int
    batch: int
    ratio: int = 8

    @property
    def settings(self) -> dict[str, Setting]:
        return {"tokens": self.tokens, "batch": self.batch, "ratio": self.ratio}


_MINIMAL = [_Cell(40, 2, 4)]
_QUICK = [_Cell(128, 8), *(_Cell(512, batch) for batch in (1, 4, 8)), _Cell(512, 4, 4), _Cell(512, 4, 32)]
_QUICK += [_Cell(2048, 1), _Cell(4096, 1)]
_CPU = [*_QUICK, _Cell(128, 1), _Cell(512, 4, 2), _Cell(512, 4, 16), _Cell(8192, 1)]
_GPU = [_Cell(512, batch) for batch in (1, 4, 8, 16, 32, 64)]
_GPU += [_Cell(512, 16, ratio) for ratio in (2, 4, 16, 32)]
_GPU += [_Cell(128, 64), _Cell(1024, 16), _Cell(2048, 8), _Cell(4096, 4), _Cell(8192, 2), _Cell(16384, 1)]
_GPU += [_Cell(32768, 1)]
_GPU_QUICK = [*(_Cell(512, batch) for batch in (1, 8, 32)), _Cell(512, 16, 4), _Cell(512, 16, 32)]
_GPU_QUICK += [_Cell(4096, 4), _Cell(16384, 1)]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Tokens per second of compressing and of plain prefill, and what both allocate.
    """
    quick, full = (_GPU_QUICK, _GPU) if bench.on_gpu else (_QUICK, _CPU)
    cells = bench.grid(minimal=_MINIMAL, quick=quick, full=full)
    for cell in bench.progress(cells):
        try:
            yield from _rows(bench, cell, len(cells))
        except torch.OutOfMemoryError:
            bench.note(f"{cell.batch} documents of {cell.tokens} tokens at ratio {cell.ratio} do not fit into memory.")
            torch.cuda.empty_cache()


def _rows(bench: Bench, cell: _Cell, n_cells: int) -> Iterator[Row]:
    ids = bench.ids(cell.batch, cell.tokens)
    documents = list(ids[:, None].unbind())
    runs: dict[str, Callable[[], object]] = {
        "compress": lambda: bench.engine.compress(documents, ratio=cell.ratio),
        "plain prefill": lambda: prefill(bench.stock, ids),
    }
    work = {
        "compress": compress_flops(bench.engine, cell.tokens, cell.ratio),
        "plain prefill": prefill_flops(bench.engine, cell.tokens),
    }
    pairs = bench.paired(runs, cells=n_cells)
    n_tokens = cell.batch * cell.tokens
    for name in runs:
        mine = name == "compress"
        row = Row(
            name=name,
            settings=cell.settings,
            unit="tokens/s",
            better="higher",
            value=pairs.seconds(name).map(lambda seconds: n_tokens / seconds),
            baseline="plain prefill" if mine else "",
            ratio=pairs.speedup("compress", "plain prefill") if mine else None,
            floor="its work at the measured matmul rate",
            floor_value=bench.machine.matmul_flops * cell.tokens / work[name],
        )
        yield bench.held(row, *_bars(cell)) if mine else row
    yield from _memory(bench, cell, runs)


def _bars(cell: _Cell) -> list[Bar]:
    if cell.ratio != _BAR_RATIO:
        return []
    return [CPU_BAR, GPU_BAR] if cell.tokens == _BAR_TOKENS else [CPU_BAR]


def _memory(bench: Bench, cell: _Cell, runs: dict[str, Callable[[], object]]) -> Iterator[Row]:
    peaks = {name: bench.peak_mib(run) for name, run in runs.items()}
    plain = peaks["plain prefill"]
    for name, peak in peaks.items():
        if peak is None or plain is None:
            continue
        mine = name == "compress"
        yield Row(
            name=f"{name}, peak memory above the weights",
            settings=cell.settings,
            unit="MiB",
            better="lower",
            value=peak,
            baseline="plain prefill" if mine else "",
            ratio=Spread.of([plain.median / peak.median]) if mine else None,
        )


def prefill(model: Any, ids: torch.Tensor) -> Any:
    """Read documents as the plain model does in front of an answer.

    Args:
        model: The stock model.
        ids: Token ids of documents of one length: nothing is padded, nothing masked.

    Returns:
        The cache.
    """
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


SUITE = Suite(
    name="compress",
    title="Compressing documents",
    order=1,
    about=(
        "Documents are condensed into memories, and read by the plain model: the same tokens, no padding, no mask, "
        "sdpa, a cache that grows, logits of the last token alone. Work is 2 x parameters of the layers x raw tokens "
        "plus the attention of raw tokens; gist tokens and their own projections count as no work. The floor is this "
        "work at the fastest matrix product that was measured on the machine: the share of it is the model FLOP "
        "utilisation."
    ),
    measure=measure,
    bars=(CPU_BAR, GPU_BAR),
    plots=(
        Plot(name="batch", x="batch", unit="tokens/s", where={"tokens": 512, "ratio": 8}),
        Plot(name="length", x="tokens", unit="tokens/s", where={"ratio": 8}),
    ),
)
