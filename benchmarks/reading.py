"""Read frozen dataclasses from plain JSON values, checked by their annotations.

Is        one function; it needs no package, as benchmarks also run where little is installed.
Flow      errors -> [reading] -> record.
Change    kinds of annotations that it understands.
Holds     every field is there and of its kind; a field that is unknown is refused.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ultragist_rag.errors import InputError

__all__ = ["read_value"]


def read_value(kind: Any, value: Any, place: str) -> Any:
    """Turn a JSON value into what an annotation says.

    Args:
        kind: A dataclass, a list, a dict with text as keys, a union, a literal, or a plain type.
        value: The JSON value.
        place: Where it stands, for messages.

    Returns:
        The value.

    Raises:
        InputError: If it is of another kind.

    Example:
        >>> read_value(dict[str, int | None], {"a": 1, "b": None}, "file")
        {'a': 1, 'b': None}
        >>> read_value(list[int], [1, "2"], "file")
        Traceback (most recent call last):
        ...
        ultragist_rag.errors.InputError: file.1 is '2', which is no int.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, place)
    if origin is list and isinstance(value, list):
        return [read_value(arguments[0], one, f"{place}.{index}") for index, one in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: read_value(arguments[1], one, f"{place}.{name}") for name, one in value.items()}
    if origin in (Union, types.UnionType):
        return _read_first(arguments, kind, value, place)
    if origin is Literal and value in arguments and not isinstance(value, bool):
        return value
    if isinstance(kind, type) and origin is None:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            return value
    raise InputError(f"{place} is {value!r}, which is no {getattr(kind, '__name__', kind)}.")


def _read_first(kinds: tuple[Any, ...], whole: Any, value: Any, place: str) -> Any:
    """Read a value as the kind of a union that it is of; of one kind that may be missing, with that kind's message."""
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        return read_value(rest[0], value, place)
    if type(value) in rest:
        return value
    raise InputError(f"{place} is {value!r}, which is no {whole}.")


def _read_fields(kind: Any, values: dict[str, Any], place: str) -> Any:
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in values if name not in known]
    needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in values]
    if unknown or missing:
        words = f"knows no field {unknown[0]!r}" if unknown else f"lacks field {missing[0]!r}"
        raise InputError(f"{place} {words}.")
    return kind(**{name: read_value(hints[name], value, f"{place}.{name}") for name, value in values.items()})
