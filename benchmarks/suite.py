"""What a suite is, and what it is given to measure with.

Is        `Suite` with its bars and plots, and `Bench`: model, device, time that may be spent.
Flow      record, timing, machine, shapes -> [suite] -> suites, run, report.
Change    what every suite needs.
Not here  one suite -> suites/.
Holds     a row names a bar only where the bar is meant: its kind of device, its shape, its own grid point.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from tqdm import tqdm

from benchmarks.record import Machine, Record, Row, Setting, Spread
from benchmarks.shapes import Shape, build_engine, stock_model
from benchmarks.timing import AT_LEAST, Pairs, Variant, paired, synchroniser
from ultragist_rag import UltraGist

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bar", "Bench", "Plot", "Size", "Suite"]

Size = Literal["minimal", "quick", "full"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a row has to reach. Give one of `at_least` and `at_most`.

    Attributes:
        name: In words, with what it is compared.
        on: Kind of device it is meant for.
        shape: Model shape it is meant for.
        of: Which number of the row: its value, its ratio to the baseline (times better), its share of the floor.
        at_least: Lower limit.
        at_most: Upper limit.
        judged: Which of several rows that name it counts.
    """

    name: str
    on: Literal["cpu", "gpu"]
    shape: str
    of: Literal["value", "ratio", "share"]
    at_least: float | None = None
    at_most: float | None = None
    judged: Literal["best", "worst"] = "worst"

    def means(self, machine: Machine, shape: str) -> bool:
        """Whether it is meant for what is measured."""
        return self.shape == shape and (self.on == "gpu") == machine.on_gpu

    def number(self, row: Row) -> float | None:
        """The number of a row that is judged; None if the row has none."""
        if self.of == "share":
            return row.share
        spread = row.value if self.of == "value" else row.ratio
        return None if spread is None else spread.median

    def judge(self, row: Row) -> Row:
        """Return the row with the bar's name and whether it is met."""
        number = self.number(row)
        met = number is not None and (self.at_least is None or number >= self.at_least)
        met = met and (self.at_most is None or number is None or number <= self.at_most)
        return replace(row, bar=self.name, met=met)

    def chosen(self, rows: Sequence[Row]) -> Row | None:
        """Choose the row that counts; None if no row names the bar."""
        mine = [row for row in rows if row.bar == self.name and self.number(row) is not None]
        sign = (1 if self.at_least is not None else -1) * (1 if self.judged == "best" else -1)
        return max(mine, key=lambda row: sign * (self.number(row) or 0.0), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What is drawn of a record: lines of values by a setting; of several rows at one place the best counts.

    Attributes:
        name: A part of the file name.
        x: Setting along the horizontal axis.
        unit: Rows of this unit are drawn.
        by: Settings that make lines of their own, besides the row's name.
        where: Rows with these settings only.
    """

    name: str
    x: str
    unit: str
    by: tuple[str, ...] = ()
    where: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite: one file of `suites/` has one, called `SUITE`.

    Attributes:
        name: Its name, that of its file.
        title: Heading on the page.
        order: Place on the page and in `all`.
        about: Paragraph under the heading: what is measured, against what, how it is counted.
        measure: Yields rows; wraps its grid into `Bench.progress`.
        bars: What its rows are held against.
        plots: What is drawn.
        figures: Draws more than `plots` can, by name; imports matplotlib when it is called.
    """

    name: str
    title: str
    order: int
    about: str
    measure: Callable[[Bench], Iterator[Row]]
    bars: tuple[Bar, ...] = ()
    plots: tuple[Plot, ...] = ()
    figures: Callable[[Record], dict[str, Figure]] | None = None


@dataclass(kw_only=True)
class Bench:
    """What a suite measures with.

    Attributes:
        shape: Model shape.
        device: Where to compute.
        dtype: Of the weights.
        machine: The machine with its limits.
        size: Which grid: `minimal` for tests, `quick` for about a minute on two cores, `full`.
        seconds: What the suite may take in all, besides three rounds of everything.
        repeats: Rounds at most; None for no such limit.
        notes: What the suite says of cells that it left out.
    """

    shape: Shape
    device: torch.device
    dtype: torch.dtype
    machine: Machine
    size: Size
    seconds: float
    repeats: int | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def engine(self) -> UltraGist:
        """The engine, built when it is first asked for, shared by the suites of a run."""
        with torch.inference_mode(False):
            return build_engine(self.shape, self.device, self.dtype)

    @cached_property
    def stock(self) -> Any:
        """The plain Hugging Face model with the same weights in memory, for baselines."""
        with torch.inference_mode(False):
            return stock_model(self.engine)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.machine.on_gpu

    def grid(self, *, minimal: T, quick: T, full: T) -> T:
        """Choose what belongs to the size."""
        return {"minimal": minimal, "quick": quick, "full": full}[self.size]

    def ids(self, batch: int, n_tokens: int, seed: int = 0) -> torch.Tensor:
        """Random token ids, no special ones, of shape (batch, tokens)."""
        generator = torch.Generator().manual_seed(seed)
        n_words = int(self.engine.model.config.vocab_size)
        return torch.randint(3, n_words, (batch, n_tokens), generator=generator).to(self.device)

    def paired(self, variants: Mapping[str, Callable[[], object] | Variant], *, cells: int) -> Pairs:
        """Time variants in alternation, in this cell's share of the suite's time.

        Args:
            variants: What to run, by name.
            cells: Cells of the grid.

        Returns:
            Seconds of each in each round: at least three of them.
        """
        rounds = max(AT_LEAST, self.repeats or 50)
        seconds = 0.0 if self.size == "minimal" else self.seconds / cells
        gc.collect()
        with torch.inference_mode():
            return paired(variants, synchronise=synchroniser(self.device), seconds=seconds, at_most=rounds)

    def peak_mib(self, run: Callable[[], object]) -> Spread | None:
        """What a run allocates at most above what is there before, in MiB; None on a CPU, which does not tell."""
        if not self.on_gpu:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        with torch.inference_mode():
            run()
        torch.cuda.synchronize(self.device)
        return Spread.of([(torch.cuda.max_memory_allocated(self.device) - before) / 2**20])

    def held(self, row: Row, *bars: Bar) -> Row:
        """Hold a row against the first of these bars that is meant for this machine and shape, if any is."""
        for bar in bars:
            if bar.means(self.machine, self.shape.name):
                return bar.judge(row)
        return row

    def note(self, text: str) -> None:
        """Say on the page what was left out, and why."""
        self.notes.append(text)

    def progress(self, cells: Iterable[T]) -> Iterator[T]:
        """Go over the cells of a grid with a progress bar on stderr."""
        yield from tqdm(list(cells), disable=None, leave=False)
