"""Suite `first_token`: how long a question over stored memories waits for the first token of its answer.

Is        memories from GPU memory, RAM and disk against reading the whole text and against cached keys and values.
Flow      suite, baselines, page_cache, flops -> [first_token] -> suites.
Change    the grids, the bars, the parts that are timed on their own.
Holds     baselines have no mask, and none of what a call of generate costs: one forward, logits of the last token.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from benchmarks.baselines import kv_bytes, next_token, random_cache, unmasked_model, weight_bytes
from benchmarks.flops import prefill_flops
from benchmarks.page_cache import drop_pages, files_of, read_all, share_resident
from benchmarks.record import Row, Setting
from benchmarks.suite import Bar, Bench, Plot, Suite
from benchmarks.timing import Pairs, Variant
from ultragist_rag import GistMemory
from ultragist_rag.memory.beginning import begin
from ultragist_rag.memory.pieces import to_prompt

__all__ = ["SUITE"]

_FULL = "full prefill"
_PREFIX = "full KV, cached"
_BARRED = {"cpu": 16, "gpu": 64}
CPU_BAR = Bar(
    name="first token: memories in RAM, 16 chunks of 512 tokens, ratio 8, times faster than full prefill",
    on="cpu",
    shape="bundled",
    of="ratio",
    at_least=8.0,
)
GPU_BARS = {
    f"memories {place}": Bar(
        name=f"first token: memories {place}, 64 chunks of 512 tokens, ratio 8, times faster than full prefill",
        on="gpu",
        shape="llama-3-8b",
        of="ratio",
        at_least=least,
    )
    for place, least in (("in GPU memory", 31.0), ("in RAM", 20.0), ("on disk", 8.0))
}
_FLOORS = {
    _FULL: "its work at the measured matmul rate",
    "disk": "the files read one after the other, and weights and slots at the measured rates",
    "read": "the files read one after the other",
    "copy": "slots from page-locked memory at the measured rate",
    "rotate": "slots read and written at the measured rate",
    "": "weights, keys and values at the measured rates, or the work, whichever takes longer",
}


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid."""

    chunks: int
    tokens: int = 512
    ratio: int = 8
    question: int = 32

    @property
    def settings(self) -> dict[str, Setting]:
        return {"chunks": self.chunks, "tokens": self.tokens, "ratio": self.ratio, "question": self.question}


@dataclass(slots=True)
class _Stored:
    """A cell's memories, wherever they are.

    Attributes:
        here: On the device.
        in_ram: In host memory, page-locked if there is a GPU.
        get: Reads them all from disk; None if the page cache cannot be dropped here.
        files: Where they lie there.
    """

    here: list[GistMemory]
    in_ram: list[GistMemory]
    get: Callable[[], list[GistMemory]] | None
    files: list[Path]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Time to the first token by each way, and of the parts of ours.
    """
    counts = bench.grid(minimal=(2,), quick=(16, 64) if bench.on_gpu else (4, 16), full=(4, 16, 64))
    small = bench.size == "minimal"
    cells = [_Cell(n, 40, 4, 4) if small else _Cell(n) for n in counts]
    model = unmasked_model(bench.engine)
    for cell in bench.progress(cells):
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(bench, cell, model, _store(bench, cell, Path(folder)), len(cells))


def _store(bench: Bench, cell: _Cell, folder: Path) -> _Stored:
    from ultragist_rag.store import GistStore  # needs more packages than the rest

    documents = list(bench.ids(cell.chunks, cell.tokens)[:, None].unbind())
    here = bench.engine.compress(documents, ratio=cell.ratio)
    in_ram = [memory.to("cpu").pin_memory() for memory in here] if bench.on_gpu else here
    store = GistStore.open(folder, secret="of this run alone")
    markers = [store.put(memory) for memory in in_ram]
    files = files_of(folder)
    if not hasattr(os, "posix_fadvise"):
        bench.note("Without `posix_fadvise` the page cache cannot be dropped: no memories were read from disk.")
        return _Stored(here, in_ram, None, files)

    def get() -> list[GistMemory]:
        return [store.get(marker, bench.engine) for marker in markers]

    get()
    drop_pages(files)
    if left := share_resident(files):
        bench.note(f"{cell.chunks} chunks: {left:.0%} of the files stayed in the page cache after it was dropped.")
    return _Stored(here, in_ram, get, files)


def _rows(bench: Bench, cell: _Cell, model: Any, stored: _Stored, n_cells: int) -> Iterator[Row]:
    question = bench.ids(1, cell.question, seed=1)
    whole = bench.ids(1, 1 + cell.chunks * cell.tokens + cell.question, seed=2)
    n_text, n_slots = cell.chunks * cell.tokens, sum(memory.slots for memory in stored.here)
    runs: dict[str, Callable[[], object] | Variant] = {
        _FULL: lambda: next_token(model, whole, DynamicCache()),
        _PREFIX: Variant(
            run=lambda cache: next_token(model, question, cache),
            prepare=lambda: random_cache(bench.engine, 1, 1 + n_text),
        ),
        **_ours(bench, stored, question),
        **_parts(bench, stored, question, model),
    }
    pairs = bench.paired(runs, cells=n_cells)
    floors = _floors(bench, cell, pairs, n_slots, n_text)
    for name in runs:
        yield _row(bench, cell, pairs, name, floors[name])


def _ours(bench: Bench, stored: _Stored, question: Tensor) -> dict[str, Callable[[], object] | Variant]:
    engine = bench.engine

    def ask(memories: list[GistMemory]) -> object:
        return engine.generate([*memories, question], max_new_tokens=1, return_ids=True)

    runs: dict[str, Callable[[], object] | Variant] = {"memories in RAM": lambda: ask(stored.in_ram)}
    if bench.on_gpu:
        runs["memories in GPU memory"] = lambda: ask(stored.here)
    if stored.get is not None:
        get = stored.get
        runs["memories on disk"] = Variant(run=lambda _: ask(get()), prepare=lambda: drop_pages(stored.files))
    return runs


def _parts(bench: Bench, stored: _Stored, question: Tensor, model: Any) -> dict[str, Callable[[], object] | Variant]:
    engine = bench.engine
    runs: dict[str, Callable[[], object] | Variant] = {}
    if stored.get is not None:
        get = stored.get
        drop = lambda: drop_pages(stored.files)  # noqa: E731 - as short as its name
        runs["part: files read"] = Variant(run=lambda _: read_all(stored.files), prepare=drop)
        runs["part: loaded from disk"] = Variant(run=lambda _: get(), prepare=drop)
    if bench.on_gpu:
        device = bench.device
        runs["part: copied to the GPU"] = lambda: [memory.to(device, non_blocking=True) for memory in stored.in_ram]
    runs["part: rotated into the cache"] = lambda: begin(
        engine.attachment, [to_prompt(engine, [*stored.here, question])]
    )
    n_slots = sum(memory.slots for memory in stored.here)
    runs["part: forward of the question"] = Variant(
        run=lambda cache: next_token(model, question, cache), prepare=lambda: random_cache(engine, 1, n_slots)
    )
    return runs


def _floors(bench: Bench, cell: _Cell, pairs: Pairs, n_slots: int, n_text: int) -> Mapping[str, tuple[str, float]]:
    """Name what each takes at least, and seconds."""
    engine, machine = bench.engine, bench.machine
    n_bytes = n_slots * kv_bytes(engine)
    work = prefill_flops(engine, cell.question) / machine.matmul_flops

    def forward(n_columns: int) -> float:
        return max(work, (weight_bytes(engine) + n_columns * kv_bytes(engine)) / machine.copy_bytes)

    copy = n_bytes / machine.upload_bytes if machine.upload_bytes else 0.0
    read = pairs.seconds("part: files read").median if "part: files read" in pairs.times else 0.0
    seconds = {
        _FULL: (_FULL, prefill_flops(engine, 1 + n_text + cell.question) / machine.matmul_flops),
        _PREFIX: ("", forward(n_text)),
        "memories in GPU memory": ("", forward(n_slots)),
        "memories in RAM": ("", copy + forward(n_slots)),
        "memories on disk": ("disk", read + copy + forward(n_slots)),
        "part: files read": ("", 0.0),
        "part: loaded from disk": ("read", read),
        "part: copied to the GPU": ("copy", copy),
        "part: rotated into the cache": ("rotate", 2 * n_bytes / machine.copy_bytes),
        "part: forward of the question": ("", forward(n_slots)),
    }
    return {name: (_FLOORS[key], value) for name, (key, value) in seconds.items()}


def _row(bench: Bench, cell: _Cell, pairs: Pairs, name: str, floor: tuple[str, float]) -> Row:
    compared = name != _FULL and not name.startswith("part")
    unit, each = ("s", 1.0) if name == _FULL else ("ms", 1e3)  # drawn by unit: seconds would hide all the rest
    row = Row(
        name=name,
        settings=cell.settings,
        unit=unit,
        better="lower",
        value=pairs.seconds(name).map(lambda seconds: seconds * each),
        baseline=_FULL if compared else "",
        ratio=pairs.speedup(name, _FULL) if compared else None,
        floor=floor[0] if floor[1] else "",
        floor_value=floor[1] * each or None,
    )
    bars = []
    if cell.chunks == _BARRED["gpu" if bench.on_gpu else "cpu"]:
        bars += [CPU_BAR] if name == "memories in RAM" else []
        bars += [GPU_BARS[name]] if name in GPU_BARS else []
    return bench.held(row, *bars)


SUITE = Suite(
    name="first_token",
    title="First token",
    order=2,
    about=(
        "A question of 32 tokens over stored chunks of 512 tokens, until the first token of the answer is there. "
        "*Full prefill* reads chunks and question by the plain model; *full KV, cached* has keys and values of all "
        "chunks on the device and reads the question behind them. Both are one forward, logits of the last token "
        "alone, by an attention that makes no mask, for which transformers would repeat keys and values; memories are "
        "asked through `generate`, with all that it does. Keys and values have random content, and are put in place "
        "outside the time taken. *In RAM* is page-locked memory where there is a GPU. *On disk* is a `GistStore` in a "
        "folder for temporary files, read by `get` one after the other; before each time every file is written out by "
        "`fsync` and its pages are dropped by `posix_fadvise(POSIX_FADV_DONTNEED)`, and `mincore` is asked whether "
        "any stayed. Parts are timed on their own: reading the bare files, `get`, the copy to the GPU, the way into "
        "the cache with rotated keys, and a forward of the question behind as many slots; what is missing to the "
        "whole is Python."
    ),
    measure=measure,
    bars=(CPU_BAR, *GPU_BARS.values()),
    plots=(Plot(name="chunks", x="chunks", unit="ms"),),
)
