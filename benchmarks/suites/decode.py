"""Suite `decode`: tokens per second behind memories, against the full keys and values, and how many prompts fit.

Is        decoding by context length, batch and ratio; the largest batch on a GPU; kvpress, in its own environment.
Flow      suite, baselines, flops, kvpress_launch -> [decode] -> suites.
Change    the grids, the bars.
Not here  what runs in the environment of kvpress -> ../kvpress_decode.py.
Holds     the time of a first token, prompt included, is taken off every time: what is left is decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.baselines import kv_bytes, random_cache, weight_bytes
from benchmarks.flops import prefill_flops
from benchmarks.kvpress_launch import decode_there
from benchmarks.record import Row, Setting, Spread
from benchmarks.suite import Bar, Bench, Plot, Suite
from benchmarks.timing import Pairs, Variant
from ultragist_rag import GistMemory
from ultragist_rag.errors import UltraGistError

__all__ = ["SUITE"]

CPU_BAR = Bar(
    name="decode: times as fast as plain generate at equal KV length, ratio 8, median of lengths and batches",
    on="cpu",
    shape="bundled",
    of="ratio",
    at_least=0.95,
)
GPU_BAR = Bar(
    name="decode: times faster than full KV, context of 32,768 tokens, batch 16, ratio 8",
    on="gpu",
    shape="llama-3-8b",
    of="ratio",
    at_least=2.5,
)
BATCH_BAR = Bar(
    name="decode: largest batch against full KV, context of 32,768 tokens, ratio 8",
    on="gpu",
    shape="llama-3-8b",
    of="ratio",
    at_least=6.0,
)
_MEMORIES, _FULL, _EQUAL, _IN_PLACE = "memories", "full KV", "plain generate, equal KV", "full KV, written in place"
_LONG, _RATIO = 32_768, 8
_PRESSES = ("knorm", "snapkv")


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid."""

    context: int
    batch: int
    ratio: int = 8
    n_new: int = 32

    @property
    def chunk(self) -> int:
        """Tokens of one document; the context is made of whole ones."""
        return min(512, self.context)

    @property
    def settings(self) -> dict[str, Setting]:
        return {"context": self.context, "batch": self.batch, "ratio": self.ratio}


_QUICK = [_Cell(context, batch) for context in (1024, 4096) for batch in (1, 4)]
_CPU = [*_QUICK, _Cell(16_384, 1), _Cell(16_384, 4), _Cell(_LONG, 1), _Cell(4096, 1, 4), _Cell(4096, 1, 16)]
_GPU = [_Cell(context, batch, n_new=32) for context in (2048, 8192, _LONG, 131_072) for batch in (1, 4, 16)]
_GPU += [_Cell(_LONG, 16, ratio, 32) for ratio in (4, 16)]
_GPU_QUICK = [_Cell(context, batch) for context in (8192, _LONG) for batch in (1, 16)]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Tokens per second of each way, those of kvpress, and the largest batches.
    """
    quick, full = (_GPU_QUICK, _GPU) if bench.on_gpu else (_QUICK, _CPU)
    cells = bench.grid(minimal=[_Cell(64, 2)], quick=quick, full=full)
    at_equal: list[Spread] = []
    for cell in bench.progress(cells):
        try:
            yield from _rows(bench, cell, len(cells), at_equal)
        except torch.OutOfMemoryError:
            bench.note(f"Full KV of {cell.context} tokens, batch {cell.batch}, does not fit into memory.")
            torch.cuda.empty_cache()
    yield from _summary(bench, at_equal)
    if bench.size != "minimal":
        yield from _kvpress(bench, [cell for cell in cells if cell.batch == 1 and cell.ratio == _RATIO])
    if bench.on_gpu:
        yield from _largest_batches(bench, _Cell(_LONG, 1))


def _rows(bench: Bench, cell: _Cell, n_cells: int, at_equal: list[Spread]) -> Iterator[Row]:
    memories = _memories(bench, cell)
    columns = _columns(bench, cell, memories)

    def timed(*names: str) -> Pairs:
        runs: dict[str, Callable[[], object] | Variant] = {}
        for n in (1, 1 + cell.n_new):
            ways = {_MEMORIES: _ours(bench, cell, memories, n), **_plain(bench, cell, columns, n)}
            runs.update({f"{name}, {n}": ways[name] for name in (_MEMORIES, *names)})
        return _without_first(bench.paired(runs, cells=2 * n_cells), cell)

    pairs = timed(_EQUAL)  # on their own, since they are quick: more rounds where little is between the two
    yield _row(bench, cell, pairs, _EQUAL, columns[_EQUAL])
    row = _against_equal(cell, pairs)
    at_equal += [row.ratio] if cell.ratio == _RATIO and row.ratio else []
    yield row
    pairs = timed(_FULL, _IN_PLACE)
    for name in pairs.times:
        row = _row(bench, cell, pairs, name, columns[name])
        yield bench.held(row, GPU_BAR) if name == _MEMORIES and (cell.context, cell.batch) == (_LONG, 16) else row


def _memories(bench: Bench, cell: _Cell) -> list[GistMemory]:
    """Memories of a context: few are made, and stand in the prompt again and again."""
    n_chunks = cell.context // cell.chunk
    documents = list(bench.ids(min(n_chunks, 4), cell.chunk)[:, None].unbind())
    made = bench.engine.compress(documents, ratio=cell.ratio)
    return [made[number % len(made)] for number in range(n_chunks)]


def _columns(bench: Bench, cell: _Cell, memories: Sequence[GistMemory]) -> dict[str, int]:
    """Columns in front of the first new token: a lead token, slots or text, and a question of one token."""
    n_ids = 1 + (bench.engine.lead_token is not None)
    short, long = n_ids + sum(memory.slots for memory in memories), n_ids + cell.context
    return {_MEMORIES: short, _FULL: long, _EQUAL: short, _IN_PLACE: long}


def _ours(bench: Bench, cell: _Cell, memories: list[GistMemory], n: int) -> Callable[[], object]:
    prompts = [[*memories, row[None]] for row in bench.ids(cell.batch, 1)]
    return lambda: bench.engine.generate(prompts, max_new_tokens=n, min_new_tokens=n, return_ids=True)


def _plain(bench: Bench, cell: _Cell, columns: dict[str, int], n: int) -> dict[str, Callable[[], object] | Variant]:
    def variant(name: str, room: int | None) -> Variant:
        return Variant(
            run=lambda cache: decode(bench, cache, columns[name], n),
            prepare=lambda: random_cache(bench.engine, cell.batch, columns[name] - 1, room=room),
        )

    return {_FULL: variant(_FULL, None), _EQUAL: variant(_EQUAL, None), _IN_PLACE: variant(_IN_PLACE, n)}


def decode(bench: Bench, cache: DynamicCache, columns: int, n: int) -> torch.Tensor:
    """Decode by transformers' generate behind a cache that lacks the last column.

    Args:
        bench: Has the plain model.
        cache: Keys and values, in all rows.
        columns: Of cache and unread token.
        n: New tokens, whatever comes.

    Returns:
        Ids of the prompt and what is new, shape (batch, columns + n), on the CPU.
    """
    layer: Any = cache.layers[0]
    ids = bench.ids(1, columns).expand(len(layer.keys), -1).contiguous()
    done: Any = bench.stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        do_sample=False,
        max_new_tokens=n,
        min_new_tokens=n,
        pad_token_id=0,
    )
    new: torch.Tensor = done.cpu()
    return new


def _without_first(pairs: Pairs, cell: _Cell) -> Pairs:
    """Take the time of one token off, round by round; its median, should a disturbed round leave nothing."""
    left = {}
    for name in [name.removesuffix(", 1") for name in pairs.times if name.endswith(", 1")]:
        first, whole = pairs.times[f"{name}, 1"], pairs.times[f"{name}, {1 + cell.n_new}"]
        rests = [all_ - one for all_, one in zip(whole, first, strict=True)]
        left[name] = rests if min(rests) > 0 else [max(all_ - median(first), 1e-9) for all_ in whole]
    return Pairs(left)


def _row(bench: Bench, cell: _Cell, pairs: Pairs, name: str, columns: int) -> Row:
    engine, machine, n_tokens = bench.engine, bench.machine, cell.batch * cell.n_new
    n_bytes = weight_bytes(engine) + cell.batch * columns * kv_bytes(engine)
    work = cell.batch * prefill_flops(engine, 1)
    compared = name in (_MEMORIES, _IN_PLACE)
    return Row(
        name=name,
        settings=cell.settings,
        unit="tokens/s",
        better="higher",
        value=pairs.seconds(name).map(lambda seconds: n_tokens / seconds),
        baseline=_FULL if compared else "",
        ratio=pairs.speedup(name, _FULL) if compared else None,
        floor="weights, keys and values read once per token at the measured rate, or the work if that takes longer",
        floor_value=cell.batch / max(n_bytes / machine.copy_bytes, work / machine.matmul_flops),
    )


def _against_equal(cell: _Cell, pairs: Pairs) -> Row:
    return Row(
        name="memories, held against equal KV",
        settings=cell.settings,
        unit="ms for each token of all rows",
        better="lower",
        value=pairs.seconds(_MEMORIES).map(lambda seconds: 1e3 * seconds / cell.n_new),
        baseline=_EQUAL,
        ratio=pairs.speedup(_MEMORIES, _EQUAL),
    )


def _summary(bench: Bench, ratios: Sequence[Spread]) -> Iterator[Row]:
    """All cells in one number, which noise moves less than each of theirs."""
    if ratios:
        found = Spread.of([ratio.median for ratio in ratios])
        row = Row(
            name="memories, held against equal KV, all lengths and batches",
            settings={"ratio": _RATIO},
            unit="times as fast",
            better="higher",
            value=found,
            baseline=_EQUAL,
            ratio=found,
        )
        yield bench.held(row, CPU_BAR)


def _largest_batches(bench: Bench, cell: _Cell) -> Iterator[Row]:
    columns = _columns(bench, cell, _memories(bench, cell))
    batches = {name: _largest_batch(bench, columns[name]) for name in (_MEMORIES, _FULL)}
    for name, batch in batches.items():
        mine = name == _MEMORIES
        row = Row(
            name=f"largest batch, {name}",
            settings={"context": cell.context, "ratio": cell.ratio},
            unit="prompts",
            better="higher",
            value=Spread.of([batch]),
            baseline=f"largest batch, {_FULL}" if mine else "",
            ratio=Spread.of([batch / batches[_FULL]]) if mine else None,
        )
        yield bench.held(row, BATCH_BAR) if mine else row


def _largest_batch(bench: Bench, columns: int) -> int:
    """Count from free memory, then decode a token at that batch; fewer by a fiftieth until it fits."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(bench.device)
    layers, words = bench.engine.attachment.n_layers, int(bench.engine.model.config.vocab_size)
    # The cache, keys and values of one layer once more while they are copied, and logits in two formats.
    each = columns * kv_bytes(bench.engine) * (1 + 1 / layers) + 8 * words
    batch = int(free / each)
    while batch > 1:
        try:
            with torch.inference_mode():
                decode(bench, random_cache(bench.engine, batch, columns - 1), columns, 1)
        except torch.OutOfMemoryError:
            batch = min(batch - 1, batch * 49 // 50)
            torch.cuda.empty_cache()
        else:
            break
    torch.cuda.empty_cache()
    return batch


def _kvpress(bench: Bench, cells: Sequence[_Cell]) -> Iterator[Row]:
    for cell in cells:
        asked = {
            "batch": cell.batch,
            "tokens": cell.context,
            "slots": sum(memory.slots for memory in _memories(bench, cell)),
            "n_new": cell.n_new,
            "rounds": 5,
            "presses": _PRESSES,
        }
        try:
            times = decode_there(bench, asked)
        except UltraGistError as error:
            bench.note(f"kvpress was not measured at {cell.context} tokens: {error}")
            return
        for press in _PRESSES:
            yield _kvpress_row(cell, Pairs(times), press)


def _kvpress_row(cell: _Cell, pairs: Pairs, press: str) -> Row:
    return Row(
        name=f"kvpress {press}, equal KV",
        settings=cell.settings,
        unit="tokens/s",
        better="higher",
        value=pairs.seconds(press).map(lambda seconds: cell.batch * cell.n_new / seconds),
        baseline="plain decoding in their environment, equal KV",
        ratio=pairs.speedup(press, "plain"),
    )


SUITE = Suite(
    name="decode",
    title="Decoding",
    order=3,
    about=(
        "Tokens per second once the first one is there: time of 17 (on a GPU 33) new tokens less that of one, batches "
        "of equal prompts. *Memories* are asked through the engine. *Full KV* is transformers' generate behind a "
        "cache with keys and values of every token, *equal KV* behind one with as many columns as the memories have "
        "slots; both have random content, no padding and no mask. transformers' cache, which memories use too, copies "
        "all keys and values for every token, which costs more the longer it is; *written in place* is the full KV "
        "without these copies, the stricter baseline. The floor reads weights, keys and values once per token. The "
        "largest batch is counted from the memory that is free, and a token is decoded at that batch to prove it; a "
        "single call of the engine decodes such a batch in groups. kvpress is measured in an environment of its own: "
        "the same shape and length, compressed to as many slots, against plain decoding by the same loop in the same "
        "process."
    ),
    measure=measure,
    bars=(CPU_BAR, GPU_BAR, BATCH_BAR),
    plots=(
        Plot(name="context", x="context", unit="tokens/s", where={"batch": 1, "ratio": 8}),
        Plot(name="context-16", x="context", unit="tokens/s", where={"batch": 16, "ratio": 8}),
    ),
)
