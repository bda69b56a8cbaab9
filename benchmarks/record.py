"""What a result file holds.

Is        frozen records: a spread of numbers, a row, a machine, a run of one suite; to JSON and back.
Flow      errors, reading -> [record] -> timing, machine -> suite -> suites, report.
Change    what is kept of a measurement.
Not here  how times are taken -> timing.py; what is good enough -> `Bar` in suite.py.
Holds     `Record.from_json(record.to_json()) == record`; what does not make sense is refused when it is made or read.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Literal, NoReturn

from benchmarks.reading import read_value
from ultragist_rag.errors import InputError

__all__ = ["Machine", "Record", "Row", "Setting", "Spread", "read_records"]

Setting = int | float | str


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, quartiles and ends of repeated measurements.

    Raises:
        InputError: If a number is not finite, or they do not stand in order.

    Example:
        >>> Spread.of([3.0, 1.0, 2.0]).map(lambda seconds: 6 / seconds)
        Spread(median=3.0, q1=2.4, q3=4.0, least=2.0, most=6.0, n=3)
    """

    median: float
    q1: float
    q3: float
    least: float
    most: float
    n: int

    def __post_init__(self) -> None:
        """Check the order; the median of ratios of medians may lie outside their quartiles, but not their ends."""
        numbers = (self.least, self.q1, self.q3, self.most)
        between = self.least <= self.median * (1 + 1e-9) and self.median <= self.most * (1 + 1e-9)
        if self.n < 1 or not all(map(math.isfinite, (*numbers, self.median))) or not between:
            raise InputError(f"{self!r} is no spread: its numbers must be finite and in order. Measure again.")
        if list(numbers) != sorted(numbers):
            raise InputError(f"{self!r} is no spread: least, q1, q3 and most must be in order. Measure again.")

    @classmethod
    def of(cls, values: Sequence[float], middle: float | None = None) -> Spread:
        """Sum up measurements.

        Args:
            values: At least one.
            middle: What to give as median; None for that of the values.

        Returns:
            Their spread.
        """
        ordered = sorted(map(float, values))
        low, _, high = quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        found = median(ordered) if middle is None else middle
        return cls(found, low, high, ordered[0], ordered[-1], len(ordered))

    def map(self, change: Callable[[float], float]) -> Spread:
        """Apply a monotone function, which may turn the order round: seconds into tokens per second, for example."""
        q1, q3 = sorted((change(self.q1), change(self.q3)))
        least, most = sorted((change(self.least), change(self.most)))
        return Spread(change(self.median), q1, q3, least, most, self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number that was measured.

    Attributes:
        name: What was measured, the same in all rows of one line of a plot.
        settings: Lengths, batch, ratio and so on, by name.
        unit: Of `value` and `floor_value`.
        better: Whether more or less of it is better.
        value: The measurement.
        baseline: What `ratio` compares with; empty for nothing.
        ratio: How many times better than the baseline, over pairs of measurements: 2 is twice as fast.
        floor: What the machine allows at best, in words; empty if none is known.
        floor_value: The same as a number.
        bar: Name of the bar that the row is held against; empty for none.
        met: Whether it meets the bar; None without one.

    Raises:
        InputError: If two of these do not go together.
    """

    name: str
    settings: dict[str, Setting]
    unit: str
    better: Literal["higher", "lower"]
    value: Spread
    baseline: str = ""
    ratio: Spread | None = None
    floor: str = ""
    floor_value: float | None = None
    bar: str = ""
    met: bool | None = None

    def __post_init__(self) -> None:
        """Check what goes together."""
        pairs = (
            (self.baseline, self.ratio, "baseline and ratio"),
            (self.floor, self.floor_value, "floor and floor_value"),
            (self.bar, self.met, "bar and met"),
        )
        wrong = [words for text, value, words in pairs if bool(text) != (value is not None)]
        if wrong:
            raise InputError(f"row {self.name!r} has one of {wrong[0]} without the other. Give both or none.")
        if self.floor_value is not None and not (math.isfinite(self.floor_value) and self.floor_value > 0):
            raise InputError(f"row {self.name!r} has floor_value {self.floor_value}: it must be positive.")

    @property
    def share(self) -> float | None:
        """How much of what the machine allows was reached, 0 to 1; None if no floor is known."""
        if self.floor_value is None or not self.value.median:
            return None
        reached = self.value.median / self.floor_value
        return reached if self.better == "higher" else 1 / reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on.

    Attributes:
        kind: `cpu`, or a GPU's name in small letters; a part of file names.
        device: Name of the device.
        cpu: Name of the processor.
        n_cores: Cores that this process may use.
        n_threads: Threads that torch computes with.
        dtype: Number format of the weights.
        versions: Of Python and packages.
        matmul_flops: Fastest matrix product in this format, in FLOP/s.
        copy_bytes: Copying inside the device's memory, read plus written, in bytes/s.
        upload_bytes: From page-locked host memory to the device, in bytes/s; None on a CPU.
    """

    kind: str
    device: str
    cpu: str
    n_cores: int
    n_threads: int
    dtype: str
    versions: dict[str, str]
    matmul_flops: float
    copy_bytes: float
    upload_bytes: float | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.kind != "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run of one suite: a result file.

    Attributes:
        suite: Name of the suite.
        shape: Name of the model shape.
        model: Settings of the model: layers, hidden size and so on, parameters included.
        size: Which grid was run: `minimal`, `quick` or `full`.
        command: What was typed.
        date: When the run ended, ISO 8601, UTC.
        machine: What it ran on.
        rows: What was measured.
        notes: What was left out, and why.
        format: Of the file.
    """

    suite: str
    shape: str
    model: dict[str, Setting]
    size: Literal["minimal", "quick", "full"]
    command: str
    date: str
    machine: Machine
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    format: Literal[1] = 1

    @property
    def file_name(self) -> str:
        """Name of its file: device kind, shape and suite."""
        return f"{self.machine.kind}-{self.shape}-{self.suite}.json"

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read and check what `to_json` gave.

        Args:
            text: JSON.

        Returns:
            The record.

        Raises:
            InputError: If it is no such record.
        """
        try:
            record: Record = read_value(cls, json.loads(text, parse_constant=_no_number), "record")
        except ValueError as error:
            raise InputError(f"no result of a benchmark: {error} Run the suite again.") from None
        return record

    def write(self, folder: Path) -> Path:
        """Write the file, at once or not at all.

        Args:
            folder: Is made if missing.

        Returns:
            The file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            part = Path(draft) / self.file_name
            part.write_text(self.to_json(), encoding="utf-8")
            part.replace(path)
        return path


def _no_number(text: str) -> NoReturn:
    raise InputError(f"{text} is no number that JSON knows.")


def read_records(folder: Path) -> list[Record]:
    """Read all result files of a folder.

    Args:
        folder: May be missing.

    Returns:
        The records, by file name.

    Raises:
        InputError: If a file is no record, or is named otherwise than its content says.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = Record.from_json(path.read_text(encoding="utf-8"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if record.file_name != path.name:
            raise InputError(f"{path} holds {record.file_name}. Name it so.")
        records.append(record)
    return records
