"""Suite `training`: learning to read from memories, against plain fine-tuning on the same tokens.

Is        raw tokens per second of forward and backward, and peak memory on a GPU.
Flow      suite -> [training] -> suites.
Change    the batches, what is trained.
Holds     the baseline is the stock model on the same tokens as plain text, with logits of the same answer tokens alone;
          no side takes an optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.record import Row, Setting, Spread
from benchmarks.suite import Bench, Plot, Suite

if TYPE_CHECKING:
    from ultragist_rag.training.batches import Row as Prompt
    from ultragist_rag.training.config import Mode
    from ultragist_rag.training.drawing import Batch

__all__ = ["SUITE"]

_PLAIN, _ONE_PASS, _LOOP, _FROZEN = "plain fine-tuning", "one pass", "window by window", "one pass, base frozen"
_BASELINES = {_ONE_PASS: _PLAIN, _LOOP: _ONE_PASS, _FROZEN: _PLAIN}
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_TURNS, _ASKED = 96, 32
"""Tokens behind the documents of a prompt, and how many of them are questions."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid: prompts of a batch, documents of each, tokens of each document."""

    batch: int
    documents: int
    tokens: int
    ratio: int = 8

    @property
    def settings(self) -> dict[str, Setting]:
        sizes = {"batch": self.batch, "documents": self.documents, "tokens": self.tokens}
        return {**sizes, "ratio": self.ratio}

    @property
    def n_raw(self) -> int:
        """Raw tokens of a batch."""
        return self.batch * (self.documents * self.tokens + _TURNS)


_MINIMAL = [_Cell(2, 2, 40)]
_QUICK = [_Cell(2, 1, 512), _Cell(1, 4, 256)]
_CPU = [*_QUICK, _Cell(4, 1, 512), _Cell(2, 4, 512), _Cell(1, 1, 2048), _Cell(2, 1, 512, 4)]
_GPU = [_Cell(1, 4, 512), _Cell(2, 4, 512), _Cell(4, 1, 512), _Cell(1, 1, 4096), _Cell(2, 4, 512, 4)]


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Tokens per second, and what each way allocates.
    """
    try:
        import ultragist_rag.training.combined  # noqa: F401 - asks for what training needs
    except ImportError as error:
        bench.note(f"Training was not measured: it needs the package {error.name}, which is not installed.")
        return
    cells = bench.grid(minimal=_MINIMAL, quick=_QUICK, full=_GPU if bench.on_gpu else _CPU)
    for cell in bench.progress(cells):
        try:
            yield from _rows(bench, cell, len(cells))
        except torch.OutOfMemoryError:
            bench.note(f"{cell.batch} prompts of {cell.documents} x {cell.tokens} tokens do not fit into memory.")
            torch.cuda.empty_cache()


def _rows(bench: Bench, cell: _Cell, n_cells: int) -> Iterator[Row]:
    runs = _runs(bench, cell)
    pairs = bench.paired(runs, cells=n_cells)
    peaks = {name: bench.peak_mib(run) for name, run in runs.items()}
    for name in runs:
        baseline = _BASELINES.get(name, "")
        row = Row(
            name=name,
            settings=cell.settings,
            unit="tokens/s",
            better="higher",
            value=pairs.seconds(name).map(lambda seconds: cell.n_raw / seconds),
            baseline=baseline,
            ratio=pairs.speedup(name, baseline) if baseline else None,
        )
        yield row
        mine, other = peaks[name], peaks.get(baseline)
        if mine is not None:
            ratio = None if other is None else Spread.of([other.median / mine.median])
            title = f"{name}, peak memory above the weights"
            yield replace(row, name=title, unit="MiB", better="lower", value=mine, ratio=ratio)


def _runs(bench: Bench, cell: _Cell) -> dict[str, Callable[[], object]]:
    from ultragist_rag.training.combined import Combined

    engine, stock = bench.engine, bench.stock
    objective = Combined(engine.attachment, engine.lead_token)
    rows = _prompts(bench, cell)
    batches = {is_one: _batch(bench, cell, rows, one_pass=is_one) for is_one in (True, False)}
    ids, places = _as_text(rows, bench.device)
    gists = {id(value) for value in engine.attachment.parameters().values()}

    def learn(is_one: bool, *, frozen: bool = False) -> Callable[[], object]:
        return lambda: _backward(
            engine.model, lambda: objective(batches[is_one])[0], lambda one: not frozen or id(one) in gists
        )

    return {
        _PLAIN: lambda: _backward(stock, lambda: _plain_loss(stock, ids, places), lambda _: True),
        _ONE_PASS: learn(True),
        _LOOP: learn(False),
        _FROZEN: learn(True, frozen=True),
    }


def _backward(model: Any, loss: Callable[[], torch.Tensor], trains: Callable[[torch.Tensor], bool]) -> None:
    """Make the gradients of a batch and drop them: models are shared with other suites, and with the next run."""
    parameters = list(model.parameters())
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(_ATTENTION):
        for one in parameters:
            one.requires_grad_(trains(one))
        try:
            loss().backward()
        finally:
            for one in parameters:
                one.grad = None
                one.requires_grad_(False)


def _plain_loss(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.index_select(1, places - 1)).float()
    return functional.cross_entropy(logits.flatten(0, 1), ids.index_select(1, places).flatten())


def _prompts(bench: Bench, cell: _Cell) -> list[Prompt]:
    """Prompts of random tokens: documents, and turns whose last part is the answer."""
    from ultragist_rag.training.batches import Row as Prompt

    weights = (0.0,) * _ASKED + (1.0,) * (_TURNS - _ASKED)
    prompts = []
    for line in bench.ids(cell.batch, cell.n_raw // cell.batch).tolist():
        places = range(0, len(line) - _TURNS, cell.tokens)
        documents = tuple(tuple(line[at : at + cell.tokens]) for at in places)
        prompts.append(Prompt(documents, ((),) * len(documents), tuple(line[-_TURNS:]), weights))
    return prompts


def _as_text(prompts: list[Prompt], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tokens as plain text, and the places of the answers."""
    lines = [[*(token for document in one.documents for token in document), *one.turns] for one in prompts]
    n = len(lines[0])
    return torch.tensor(lines, device=device), torch.arange(n - _TURNS + _ASKED, n, device=device)


def _batch(bench: Bench, cell: _Cell, prompts: list[Prompt], *, one_pass: bool) -> Batch:
    """Make the batch as the processes do that draw ahead of the steps: what runs in one pass is laid out already."""
    from ultragist_rag.training.config import Stage
    from ultragist_rag.training.drawing import Batch
    from ultragist_rag.training.planned import plan

    engine, seed = bench.engine, "0"
    mode: Mode = "independent"
    stage = Stage(
        name="benchmark",
        steps=1,
        tokens=cell.n_raw,
        kinds={"text": 1.0},
        modes={mode: 1.0},
        ratios=(cell.ratio,),
        raw_share=0.0,
        one_pass=one_pass,
    )
    if not one_pass:
        return Batch(stage, mode, seed, cell.n_raw, rows=tuple(prompts))
    planned = plan(engine.config, mode, prompts, engine.lead_token, stage, seed, n_positions=engine.max_positions)
    return Batch(stage, mode, seed, cell.n_raw, planned=planned)


SUITE = Suite(
    name="training",
    title="Training",
    order=7,
    about=(
        "Forward and backward of a batch whose documents are compressed one by one, at one ratio, with the loss on the "
        "64 tokens of the answer behind a question of 32; against plain fine-tuning of the stock model on the same "
        "tokens as one text: no mask, sdpa, logits of the answer's tokens alone. Both train all weights, the engine "
        "those of its gist modules besides; with the base frozen it trains these alone. Nobody takes an optimiser "
        "step. *One pass* runs all windows and the prompt in one forward, as training does by default; *window by "
        "window* is the loop that serves answers, with gradients. Tokens are raw ones; gist tokens count as none. Peak "
        "memory, known on a GPU only, is what a batch takes above the weights, gradients included."
    ),
    measure=measure,
    plots=(Plot(name="tokens", x="tokens", unit="tokens/s", by=("batch", "documents")),),
)
