"""Source records: the text a memory was made from, kept beside it.

Is        text, recipe and metadata as one sealed JSON file; what recomputing, fallbacks and audits read.
Flow      refs, seal -> [source] -> store. Imports no torch.
Change    what is remembered about a document (raise FORMAT in refs.py).
Not here  tensors -> codec.py.
Holds     `decode(encode(record, key), key, record.name) == record`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ultragist_rag.errors import CorruptGistError, InputError
from ultragist_rag.store.refs import FORMAT, Recipe
from ultragist_rag.store.seal import BLANK, check_seal, parse_json, put_seal, stamp

__all__ = ["SourceRecord", "decode", "encode"]

_START = b'{"checksum":"'


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What a memory was made from.

    Attributes:
        name: Id of the memory.
        text: The document, unchanged.
        recipe: How it was compressed.
        metadata: Whatever the caller wants to know about the document later; JSON values.
        stored: Seconds since 1970 at which it was put; 0 before that.
    """

    name: str
    text: str
    recipe: Recipe
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stored: float = 0.0


def encode(record: SourceRecord, key: bytes) -> bytes:
    """Return the file of a record.

    Args:
        record: The record.
        key: Key of the namespace for files.

    Returns:
        JSON in ASCII with its checksum in front.

    Raises:
        InputError: If the metadata holds what JSON cannot carry.
    """
    values = {
        "checksum": BLANK,
        "format": FORMAT,
        **stamp(record.stored),
        "name": record.name,
        "text": record.text,
        "recipe": record.recipe.to_dict(),
        "metadata": dict(record.metadata),
    }
    try:
        data = json.dumps(values, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata of a document cannot be stored ({error}): use text, numbers, lists and dictionaries only."
        ) from error
    return put_seal(bytearray(data, "ascii"), len(_START), key)


def decode(data: bytes, key: bytes, name: str) -> SourceRecord:
    """Read the file of a record, all of it or nothing.

    Args:
        data: What `encode` returned.
        key: Key of the namespace for files.
        name: The id it was found under.

    Returns:
        The record.

    Raises:
        CorruptGistError: If the file is not whole, was altered, belongs to another id or has an unknown version.
    """
    if not data.startswith(_START):
        raise CorruptGistError(f"{len(data)} bytes are not a source record. Delete the file and store it again.")
    check_seal(data, len(_START), key)
    values = parse_json(data)
    if values.get("format") not in (FORMAT, FORMAT - 1):
        raise CorruptGistError(
            f"source record of format {values.get('format')!r}: this version reads {FORMAT} and the one before. "
            "Update ultragist-rag, or store the document again."
        )
    try:
        record = SourceRecord(
            name=values["name"],
            text=values["text"],
            recipe=Recipe.from_dict(values["recipe"]),
            metadata=values["metadata"],
            stored=float(values.get("stored", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptGistError(f"source record lacks something: {error}. Store the document again.") from error
    if record.name != name:
        raise CorruptGistError(f"source record of {record.name} lies under {name}: a file was moved. Delete it.")
    return record
