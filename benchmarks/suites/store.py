"""Suite `store`: putting and getting memories by place and quantisation, against plain safetensors files.

Is        MB/s of keys and values, and of the bytes that lie in the place; readers side by side.
Flow      suite -> [store] -> suites.
Change    which places are measured.
Holds     every byte that is read is touched, by the store and by the baseline; what is called `disk` was read with the
          page cache dropped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.record import Row, Setting
from benchmarks.suite import Bench, Plot, Suite
from benchmarks.timing import Pairs, Variant
from ultragist_rag import GistMemory
from ultragist_rag.errors import InputError, StoreError

if TYPE_CHECKING:
    from ultragist_rag.store import GistStore

__all__ = ["SUITE"]

_VARIABLE = "BENCH_STORES"
_QUANTISATIONS = ("none", "int8", "int4")
_CACHED = "disk, cached"
_PLACES = {"memory": "memory://", "disk": "", _CACHED: "", "fsspec, in memory": "memory+fsspec://bench"}
_READ, _WRITE, _SYNCED = "safetensors load_file", "safetensors save_file", "safetensors save_file, then fsync"


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid."""

    place: str
    quantise: str


@dataclass(frozen=True, slots=True)
class _Open:
    """A store that is open for a cell, with all memories in it, and the same tensors in plain files."""

    store: GistStore
    quantise: str
    memories: Sequence[GistMemory]
    folder: Path
    cold: bool

    @property
    def plain(self) -> list[Path]:
        return [self.folder / f"{index}.safetensors" for index in range(len(self.memories))]

    def put(self) -> list[str]:
        return [self.store.put(memory, quantise=self.quantise) for memory in self.memories]  # type: ignore[arg-type]

    def save(self, *, sync: bool = False) -> None:
        from safetensors.torch import save_file

        for memory, path in zip(self.memories, self.plain, strict=True):
            save_file(_tensors(memory), path)
            if sync:
                _sync(path)

    def get(self, markers: Sequence[str]) -> list[GistMemory]:
        return [self.store.get(marker) for marker in markers]

    def load(self) -> list[list[torch.Tensor]]:
        from safetensors.torch import load_file

        return [[one.clone() for one in load_file(path).values()] for path in self.plain]

    def drop(self) -> None:
        """Take the files out of the page cache, where they lie on a disk that is read for this cell."""
        for path in self.folder.rglob("*") if self.cold else ():
            if path.is_file():
                _sync(path, drop=True)


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell, then readers side by side.

    Args:
        bench: What to measure with.

    Yields:
        MB/s of the store and of plain files.
    """
    try:
        import ultragist_rag.store.store  # noqa: F401 - asks for what stores need
    except ImportError as error:
        bench.note(f"No store was measured: it needs the package {error.name}, which is not installed.")
        return
    if _VARIABLE not in os.environ:
        bench.note(f"Redis and object stores were not measured: {_VARIABLE} names none.")
    more = {url.partition(":")[0]: url for url in os.environ.get(_VARIABLE, "").split()}
    places = {**_PLACES, **more}
    names = [*bench.grid(minimal=["memory", "disk"], quick=[*_PLACES], full=[*_PLACES]), *more]
    cells = [_Cell(*cell) for cell in product(names, _QUANTISATIONS[bench.grid(minimal=2, quick=0, full=0) :])]
    readers = bench.grid(minimal=[1, 2], quick=[1, 2, 4, 8], full=[1, 2, 4, 8])
    memories = _memories(bench)
    n_shares = 2 * len(cells) + 2
    for cell in bench.progress(cells):
        try:
            with ExitStack() as stack:
                yield from _rows(bench, cell, _open(stack, places[cell.place], cell, memories), n_shares)
        except (InputError, StoreError) as error:
            bench.note(f"{cell.place} was not measured: {error}")
    for place in ("memory", _CACHED):
        with ExitStack() as stack:
            opened = _open(stack, places[place], _Cell(place, "none"), memories)
            yield from _side_by_side(bench, place, opened, readers, n_shares)


def _memories(bench: Bench) -> list[GistMemory]:
    n_tokens, n = bench.grid(minimal=(40, 2), quick=(512, 16), full=(512, 64))
    with torch.inference_mode():
        ids = bench.ids(n, n_tokens)
        return [bench.engine.compress(one[None]).to("cpu") for one in ids]


def _open(stack: ExitStack, url: str, cell: _Cell, memories: Sequence[GistMemory]) -> _Open:
    from ultragist_rag.store import GistStore

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    store = GistStore.open(url or folder / "store", namespace="benchmark", secret="benchmark" * 4)
    opened = _Open(store, cell.quantise, memories, folder, cold=cell.place == "disk")
    opened.save()
    for marker in opened.put():
        stack.callback(store.delete, marker)
    return opened


def _rows(bench: Bench, cell: _Cell, opened: _Open, n_shares: int) -> Iterator[Row]:
    markers = opened.put()
    raw = sum(memory.nbytes for memory in opened.memories)
    stored = opened.store.stats().n_bytes
    puts: dict[str, Callable[[], object]] = {
        "put": opened.put,
        _WRITE: opened.save,
        _SYNCED: lambda: opened.save(sync=True),
    }
    gets = {
        "get": Variant(run=lambda _: opened.get(markers), prepare=opened.drop),
        _READ: Variant(run=lambda _: opened.load(), prepare=opened.drop),
    }
    pairs = {_READ: bench.paired(gets, cells=n_shares)}
    if cell.place != _CACHED:  # putting does not depend on the cache
        pairs = {_WRITE: bench.paired(puts, cells=n_shares), **pairs}
    is_plain = cell.quantise == "none"
    for baseline, timed in pairs.items():
        for name in timed.times:
            if name in ("put", "get") or is_plain:  # plain files know no quantisation
                yield _row(cell, name, "raw", raw, timed, baseline)
            if name in ("put", "get") and not is_plain:
                yield _row(cell, name, "stored", stored, timed, "")


def _row(cell: _Cell, name: str, counted: str, n_bytes: int, pairs: Pairs, baseline: str) -> Row:
    is_ours = name in ("put", "get") and bool(baseline)
    return Row(
        name=name,
        settings={"place": cell.place, "quantised": cell.quantise, "counted": counted},
        unit="MB/s",
        better="higher",
        value=pairs.seconds(name).map(lambda seconds: n_bytes / seconds / 1e6),
        baseline=baseline if is_ours else "",
        ratio=pairs.speedup(name, baseline) if is_ours else None,
    )


def _side_by_side(bench: Bench, place: str, opened: _Open, readers: Sequence[int], n_shares: int) -> Iterator[Row]:
    markers = opened.put()
    n_bytes = sum(memory.nbytes for memory in opened.memories)
    with ExitStack() as stack:
        pools = {n: stack.enter_context(ThreadPoolExecutor(n)) for n in readers}

        def reads(pool: Any) -> Callable[[], object]:
            return lambda: list(pool.map(opened.store.get, markers))

        pairs = bench.paired({str(n): reads(pool) for n, pool in pools.items()}, cells=n_shares)
    for n in readers:
        settings: dict[str, Setting] = {"place": place, "quantised": "none", "counted": "raw", "readers": n}
        yield Row(
            name="get, readers side by side",
            settings=settings,
            unit="MB/s",
            better="higher",
            value=pairs.seconds(str(n)).map(lambda seconds: n_bytes / seconds / 1e6),
            baseline="" if n == 1 else "one reader",
            ratio=None if n == 1 else pairs.speedup(str(n), "1"),
        )


def _tensors(memory: GistMemory) -> dict[str, torch.Tensor]:
    parts = {"keys": memory.keys, "values": memory.values}
    return {f"{name}.{layer}": part.contiguous() for name, all_ in parts.items() for layer, part in enumerate(all_)}


def _sync(path: Path, *, drop: bool = False) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if drop and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


SUITE = Suite(
    name="store",
    title="The store",
    order=6,
    about=(
        "Memories of documents of 512 tokens are put into a store and read again, one by one, without tiers; the "
        "baseline writes and reads the same keys and values as plain safetensors files and copies each tensor, as they "
        "are mapped, not read, until they are touched. *Raw* counts the bytes of keys and values in their own number "
        "format, *stored* those of the files in the place. The store does more than the baseline: a checksum under the "
        "namespace's key over every byte, the tensors checked against the manifest, and on disk a lock, a rename and "
        "`fsync` for each memory; of plain files both ways of writing are shown, as only the one with `fsync` survives "
        "a power cut. What is read from *disk* is read with the page cache dropped. Readers side by side are threads "
        "that share one store and read all memories between them. *fsspec, in memory* is the way of object stores "
        f"without a network. Servers are measured if the environment variable {_VARIABLE} names URLs between spaces."
    ),
    measure=measure,
    plots=(Plot(name="readers", x="readers", unit="MB/s", by=("place",)),),
)
