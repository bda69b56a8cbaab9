"""Suite `number_formats`: the same calls in bfloat16 and in float32, on a CPU.

Is        pairs of one call by two engines with the same weights.
Flow      suite, shapes -> [number_formats] -> suites.
Change    which calls.
Holds     both engines get the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.record import Row
from benchmarks.shapes import build_engine
from benchmarks.suite import Bench, Suite
from ultragist_rag import UltraGist

__all__ = ["SUITE"]

_FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(bench: Bench) -> Iterator[Row]:
    """Measure both calls in both formats.

    Args:
        bench: What to measure with.

    Yields:
        Milliseconds in bfloat16, against float32.
    """
    if bench.on_gpu:
        bench.note("Only measured on a CPU: a GPU computes in the format of the checkpoint.")
        return
    with torch.inference_mode(False):
        engines = {name: build_engine(bench.shape, bench.device, dtype) for name, dtype in _FORMATS.items()}
    for name, calls in bench.progress(list(_calls(bench, engines).items())):
        pairs = bench.paired(calls, cells=len(_NAMES))
        yield Row(
            name=f"{name} in bfloat16",
            settings={"n": _n(bench), "tokens": _tokens(bench), "ratio": 8},
            unit="ms",
            better="lower",
            value=pairs.seconds("bfloat16").map(lambda seconds: 1000 * seconds),
            baseline="float32",
            ratio=pairs.speedup("bfloat16", "float32"),
        )


_NAMES = ("compress documents", "first token over memories", "16 tokens behind memories")


def _n(bench: Bench) -> int:
    return bench.grid(minimal=1, quick=4, full=8)


def _tokens(bench: Bench) -> int:
    return bench.grid(minimal=40, quick=512, full=512)


def _calls(bench: Bench, engines: dict[str, UltraGist]) -> dict[str, dict[str, Callable[[], object]]]:
    documents = list(bench.ids(_n(bench), _tokens(bench))[:, None].unbind())
    question = bench.ids(1, 32, seed=1)
    made = {name: engine.compress(documents, ratio=8) for name, engine in engines.items()}

    def compress(name: str) -> Callable[[], object]:
        return lambda: engines[name].compress(documents, ratio=8)

    def ask(name: str, n: int) -> Callable[[], object]:
        settings = {"max_new_tokens": n, "min_new_tokens": n, "return_ids": True}
        return lambda: engines[name].generate([*made[name], question], **settings)

    asking = [{name: ask(name, n) for name in engines} for n in (1, 16)]
    return dict(zip(_NAMES, ({name: compress(name) for name in engines}, *asking), strict=True))


SUITE = Suite(
    name="number_formats",
    title="bfloat16 on a CPU",
    order=10,
    about=(
        "The bundled model is loaded in float32 on a CPU, since few processors are quick in the format of its files. "
        "Here the same calls are timed in both formats."
    ),
    measure=measure,
)
