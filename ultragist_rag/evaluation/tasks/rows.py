"""Read records of data files field by field, and say which field of which record is wrong.

Is        `Row`: one record with the file and the number that its mistakes are told by.
Flow      data -> [rows] -> the task files of this folder.
Change    which forms of a text or of answers are understood.
Not here  where files are looked for -> data.py; how long texts are cut -> fitting.py.
Holds     a record that is not as it should be raises an error that names file, record and field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source

__all__ = ["Row", "rows"]

T = TypeVar("T")


class Row(NamedTuple):
    """One record, or a part of one.

    Attributes:
        where: The file, for messages.
        number: Its place in the file, from 1.
        values: Its fields.
    """

    where: str
    number: int
    values: Mapping[str, Any]

    def wrong(self, name: str, wanted: str) -> InputError:
        """The error for a field that is missing or of another kind."""
        found = repr(self.values[name]) if name in self.values else "missing"
        return InputError(
            f"record {self.number} of {self.where}: {name!r} is {found:.60}, but should be {wanted}. "
            "Check that the file is in the format of this task."
        )

    def first(self, names: Sequence[str]) -> Any:
        """Return the value of the first of some fields that is there; None if none is."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def _typed(self, names: Sequence[str], kind: type[T], wanted: str) -> T:
        value = self.first(names)
        if not isinstance(value, kind):
            raise self.wrong(names[0], wanted)
        return value

    def text(self, *names: str) -> str:
        """Return the text of the first of some fields that is there.

        Args:
            *names: What the field may be called.

        Returns:
            The text; it has at least one character.

        Raises:
            InputError: If there is none.
        """
        value = self._typed(names, str, "a text")
        if not value.strip():
            raise self.wrong(names[0], "a text")
        return value

    def items(self, *names: str) -> list[Any]:
        """Return the list in the first of some fields that is there.

        Args:
            *names: What the field may be called.

        Returns:
            The list.

        Raises:
            InputError: If there is none.
        """
        return self._typed(names, list, "a list")

    def part(self, *names: str) -> Row:
        """Return the record in the first of some fields that is there, told by the number of this one.

        Args:
            *names: What the field may be called.

        Returns:
            The record.

        Raises:
            InputError: If there is none.
        """
        return Row(self.where, self.number, self._typed(names, dict, "an object"))

    def parts(self, *names: str) -> list[Row]:
        """Return the records in a list, told by the number of this one.

        Args:
            *names: What the field may be called.

        Returns:
            The records.

        Raises:
            InputError: If there is no list, or something else than records is in it.
        """
        items = self.items(*names)
        if not all(isinstance(item, Mapping) for item in items):
            raise self.wrong(names[0], "a list of objects")
        return [Row(self.where, self.number, item) for item in items]

    def answers(self, *names: str) -> tuple[str, ...]:
        """Return answers: a text, a number, a list of these, or an object with such a list under `text`.

        Args:
            *names: What the field may be called.

        Returns:
            At least one answer, each once.

        Raises:
            InputError: If there is none.
        """
        value = self.first(names)
        value = value.get("text") if isinstance(value, Mapping) else value
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in listed):
            raise self.wrong(names[0], "a text or a list of texts")
        found = tuple(dict.fromkeys(str(one).strip() for one in listed if str(one).strip()))
        if not found:
            raise self.wrong(names[0], "a text or a list of texts")
        return found


def rows(source: Source, role: str = "test") -> Iterator[Row]:
    """Yield the records of a file.

    Args:
        source: Where it is.
        role: Which file.

    Yields:
        The records, numbered from 1.

    Raises:
        InputError: If a record is not an object.
    """
    try:
        where = str(source.path(role))
    except MissingDataError:  # a data set of the hub; if there is nothing at all, reading says so
        where = str(source.place)
    for number, record in enumerate(source.records(role), start=1):
        if not isinstance(record, Mapping):
            raise InputError(
                f"record {number} of {where} is {record!r:.60}, but should be an object with named fields."
            )
        yield Row(where, number, record)
