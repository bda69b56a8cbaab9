"""Suite `fast_paths`: what each fast path is worth, against the same call without it.

Is        pairs of one call with all fast paths and without one, or without any.
Flow      suite, ultragist_rag.fast -> [fast_paths] -> suites.
Change    calls that a new fast path speeds up.
Holds     the two sides of a pair differ in the environment variable alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.record import Row
from benchmarks.suite import Bench, Suite
from ultragist_rag.fast import VARIABLE

__all__ = ["SUITE"]

_CHUNK, _QUESTION = 512, 32


@dataclass(frozen=True, slots=True)
class _Cell:
    """A call, and the fast paths that are left out of it."""

    call: str
    n: int
    without: str


_COMPRESS, _ASK = "compress documents", "first token over memories"
_QUICK = [_Cell(_COMPRESS, 8, path) for path in ("kept-rows", "split-attention", "all")]
_QUICK += [_Cell(_ASK, 16, path) for path in ("one-forward", "one-rotation", "all")]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every pair.

    Args:
        bench: What to measure with.

    Yields:
        Milliseconds with all fast paths, and how many times faster that is than without some.
    """
    cells = bench.grid(minimal=[_Cell(_COMPRESS, 1, "all"), _Cell(_ASK, 1, "all")], quick=_QUICK, full=_QUICK)
    for cell in bench.progress(cells):
        run = _call(bench, cell)
        pairs = bench.paired({"fast": run, "plain": _without(cell.without, run)}, cells=len(cells))
        yield Row(
            name=f"{cell.call}, without {cell.without}" if cell.without != "all" else f"{cell.call}, all plain",
            settings={"tokens": _tokens(bench), "n": cell.n, "ratio": 8, "left out": cell.without},
            unit="ms",
            better="lower",
            value=pairs.seconds("fast").map(lambda seconds: 1000 * seconds),
            baseline=f"{VARIABLE}={cell.without}",
            ratio=pairs.speedup("fast", "plain"),
        )


def _tokens(bench: Bench) -> int:
    return bench.grid(minimal=40, quick=_CHUNK, full=_CHUNK)


def _call(bench: Bench, cell: _Cell) -> Callable[[], object]:
    documents = list(bench.ids(cell.n, _tokens(bench))[:, None].unbind())
    if cell.call == _COMPRESS:
        return lambda: bench.engine.compress(documents, ratio=8)
    memories = bench.engine.compress(documents, ratio=8)
    question = bench.ids(1, _QUESTION, seed=1)
    return lambda: bench.engine.generate([*memories, question], max_new_tokens=1, return_ids=True)


def _without(paths: str, run: Callable[[], object]) -> Callable[[], object]:
    def plain() -> object:
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = paths
        try:
            return run()
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before

    return plain


SUITE = Suite(
    name="fast_paths",
    title="Fast paths, one by one",
    order=9,
    about=(
        "The same call with all fast paths, and with some left out by the environment variable "
        f"`{VARIABLE}`. The value is the time with all of them; times better than the baseline says what the path that "
        "was left out is worth. What comes out is the same but for rounding, which the tests prove for each path."
    ),
    measure=measure,
)
