"""Find and read evaluation data: a folder, a file, or a name that the library `datasets` knows.

Is        `Source`: what a task asks for its records, and for the room that its contexts have.
Flow      errors -> [data] -> task, tasks.
Change    which file formats are read, where files are looked for.
Not here  what the records mean -> tasks/.
Holds     nothing is downloaded unless a name begins with `hub:`; what is missing is one clear line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ultragist_rag.errors import InputError

__all__ = ["MissingDataError", "Source"]

_PLACES = ("", "eval", "qa_train", "train")
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
_ENDS = ("", *_OPENERS)
"""What a file may end with besides its name: files are found packed, too."""

_HUB = "hub:"


class MissingDataError(InputError):
    """Data of a task that are not where they are looked for; the other tasks can go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one task finds its data.

    Attributes:
        task: Name of the task, for messages.
        files: Names of files to look for, by role; packed ones (`.xz`, `.gz`) are found by the same names.
        place: Folder or file with the data, or `hub:NAME`, `hub:NAME:CONFIG` or `hub:NAME:CONFIG:SPLIT`; None if
            nobody named one.
        room: Tokens that a context may have.
        count: Counts the tokens of a text.
        seed: Of everything that a task draws.
        window: Raw tokens that the model condenses in one step.
    """

    task: str
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    place: str | Path | None = None
    room: int = 1024
    count: Callable[[str], int] = len
    seed: int = 0
    window: int = 256

    def records(self, role: str = "test") -> Iterator[dict[str, Any]]:
        """Read records: lines of JSON, a JSON list, rows of CSV or TSV with a header, or a split of a hub data set.

        Args:
            role: Which file; for the hub, which split.

        Yields:
            One dictionary per record; a JSON object that is not a list is one record.

        Raises:
            InputError: If a file is damaged.
        """
        if self._is_hub:
            yield from self._from_hub(role)
            return
        path = self.path(role)
        suffix = _suffix(path)
        try:
            if suffix == ".jsonl":
                yield from _json_lines(self.lines(role))
            elif suffix == ".json":
                value = json.loads(_read(path))
                yield from value if isinstance(value, list) else [value]
            else:
                yield from csv.DictReader(io.StringIO(_read(path)), delimiter="\t" if suffix == ".tsv" else ",")
        except (ValueError, csv.Error) as error:
            raise InputError(f"{path} is damaged: {error}. Mend it, or fetch it again.") from error

    def lines(self, role: str = "test", encoding: str = "utf-8") -> Iterator[str]:
        """Yield the lines of a text file, without their ends."""
        # Not `splitlines`: texts hold line separators of Unicode, which end no line of a file.
        yield from (line.removesuffix("\n") for line in io.StringIO(_read(self.path(role), encoding), newline=None))

    def path(self, role: str = "test") -> Path:
        """Return the file of a role.

        Args:
            role: Which file.

        Returns:
            The first of its names that is there, as it is or packed.

        Raises:
            MissingDataError: If none is.
        """
        names = self.files.get(role, ())
        if self.place is None or self._is_hub:
            where = "needs files" if self._is_hub else "has no data"
            raise MissingDataError(f"{self.task} {where}: give --data with a folder that holds {' or '.join(names)}.")
        place = Path(self.place)
        if place.is_file():
            return place
        for found in (place / inner / f"{name}{end}" for name in names for end in _ENDS for inner in _PLACES):
            if found.is_file():
                return found
        raise MissingDataError(f"{self.task} is left out: {place} holds no {' or '.join(names)}.")

    @property
    def _is_hub(self) -> bool:
        return str(self.place).startswith(_HUB)

    def _from_hub(self, role: str) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingDataError(f"{self.task} needs datasets. Run: pip install 'ultragist-rag[eval]'") from error
        name, config, split, *_ = [*str(self.place).removeprefix(_HUB).split(":"), "", ""]
        try:
            found = load_dataset(name, config or None, split=role if role == "train" else split or role)
        except (OSError, RuntimeError, ValueError) as error:  # no network, no such data set or split, a script
            raise MissingDataError(f"{self.task} is left out: {name!r} cannot be loaded ({error}).") from error
        yield from (dict(record) for record in found)


def _json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON ({error})") from error


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix


def _read(path: Path, encoding: str = "utf-8") -> str:
    opener = _OPENERS.get(path.suffix, io.open)
    try:
        with opener(path, "rt", encoding=encoding, newline="") as file:
            text: str = file.read()
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}. Fetch it again.") from error
    return text
