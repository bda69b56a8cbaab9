"""Records: documents of users' own, such as chat archives, kept sealed beside the memories.

Is        JSON objects under a kind and a name, each one file that is written and read whole.
Flow      seal, shelf -> [records] -> store, rotation. Imports no torch.
Change    what the file of a record says (raise _FORMAT, and go on reading the old ones: nobody can make them again).
Not here  texts of memories -> source.py; what a session writes -> session.
Holds     what `put` returned for is read as it was written, or refused; a record is never too old and never evicted.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ultragist_rag.errors import CorruptGistError, InputError
from ultragist_rag.store.base import RECORD
from ultragist_rag.store.seal import BLANK, check_seal, parse_json, put_seal, stamp
from ultragist_rag.store.shelf import Shelf

__all__ = ["Records", "record_id"]

_FORMAT = 1
_START = b'{"checksum":"'
_KIND = re.compile(r"[a-z]{1,20}")
_MAX_NAME = 100
_N_HEAD = 1500
"""First bytes of a record, in which kind and name end: 100 characters take at most 12 bytes each in ASCII."""

_HEAD = re.compile(rb'"format":\d+(?:,"stored":"[\d.]+")?,"kind":"([a-z]{1,20})","name":("(?:[^"\\]|\\.)*")')


def record_id(key: bytes, kind: str, name: str) -> str:
    """Return the id of a record: the first 128 bits of an HMAC-SHA256 in lower-case base32.

    Args:
        key: Key of the namespace for ids.
        kind: What sort of document it is.
        name: Its name among those of its kind.

    Returns:
        26 characters out of a-z and 2-7.
    """
    digest = hmac.new(key, f"record\0{kind}\0{name}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.b32encode(digest[:16]).decode("ascii").rstrip("=").lower()


class Records:
    """The records of one namespace; `GistStore.records` is one. Threads and processes may share them.

    Example:
        >>> from ultragist_rag.store import GistStore
        >>> records = GistStore.open("memory://").records
        >>> records.put("note", {"monday": {"text": "rain"}})
        >>> records.names("note"), records.get("note", "monday"), records.get("note", "friday")
        (['monday'], {'text': 'rain'}, None)
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def put(self, kind: str, items: Mapping[str, Mapping[str, Any]]) -> None:
        """Store records of one kind; see `put_all`.

        Args:
            kind: What sort of documents they are: 1 to 20 letters a to z.
            items: JSON objects by name; a name has 1 to 100 characters.
        """
        self.put_all([(kind, name, payload) for name, payload in items.items()])

    def put_all(self, records: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Store records, all or none, in order: where a place cannot write several at once, the last one comes last.

        Args:
            records: Kind, name and JSON object of each; one that is there already is replaced.

        Raises:
            InputError: If a kind or name is not of the form it must have, or an object is not JSON.
            StoreError: If they do not fit, or the place cannot be written.
        """
        items = {self._key(kind, name): self._encode(kind, name, payload) for kind, name, payload in records}
        if items:
            self._shelf.put(items)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Read a record.

        Args:
            kind: What sort of document it is.
            name: Its name.

        Returns:
            The JSON object; None if there is none.

        Raises:
            CorruptGistError: If its file is damaged.
        """
        data = self._shelf.place.get(self._key(kind, name))
        return None if data is None else self._decode(data, kind, name)["payload"]

    def stored(self, kind: str, name: str) -> float | None:
        """Return the seconds since 1970 at which a record was put; None if there is none.

        Raises:
            CorruptGistError: If its file is damaged.
        """
        data = self._shelf.place.get(self._key(kind, name))
        return None if data is None else float(self._decode(data, kind, name)["stored"])

    def delete(self, kind: str, names: Iterable[str]) -> int:
        """Remove records; return how many there were."""
        if isinstance(names, str):
            raise InputError("names must be a list of names: put a single one into a list.")
        keys = tuple(self._key(kind, name) for name in names)
        return self._shelf.place.delete(keys) if keys else 0

    def names(self, kind: str) -> list[str]:
        """Return the names of all records of a kind, sorted. This reads the head of every record of the namespace."""
        return sorted(name for other, name in self if other == kind)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield kind and name of every record whose head is whole."""
        for key, _ in list(self._shelf.place.entries(self._shelf.folder)):
            if key.endswith(RECORD):
                found = self._told(key, self._shelf.place.head(key, _N_HEAD) or b"")
                if found is not None:
                    yield found

    def check(self, key: str, data: bytes) -> None:
        """Check the file of a record, whatever it is.

        Args:
            key: What it lies under.
            data: The file.

        Raises:
            CorruptGistError: If it is damaged, or lies under the key of another.
        """
        found = self._told(key, data[:_N_HEAD])
        if found is None:
            raise CorruptGistError(f"{key} does not say which record it is. Restore the file, or delete it.")
        self._decode(data, *found)

    def _told(self, key: str, head: bytes) -> tuple[str, str] | None:
        """Return what the head of a file says it is; None if it is damaged or lies under the key of another."""
        found = _HEAD.search(head)
        if found is None:
            return None
        try:
            kind, name = found.group(1).decode("ascii"), str(json.loads(found.group(2)))
        except ValueError:
            return None
        return (kind, name) if self._id_key(kind, name) == key else None

    def _key(self, kind: str, name: str) -> str:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise InputError(f"kind is {kind!r}, but must be 1 to 20 letters out of a-z.")
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
            raise InputError(f"a record's name is {name!r:.200}, but must be a text of 1 to {_MAX_NAME} characters.")
        return self._id_key(kind, name)

    def _id_key(self, kind: str, name: str) -> str:
        return f"{self._shelf.folder}/{record_id(self._shelf.keys.ids, kind, name)}{RECORD}"

    def _encode(self, kind: str, name: str, payload: Mapping[str, Any]) -> bytes:
        values = {"checksum": BLANK, "format": _FORMAT, **stamp(time.time()), "kind": kind, "name": name}
        try:
            data = json.dumps({**values, "payload": dict(payload)}, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"record {name!r} of kind {kind} cannot be stored ({error}): use text, numbers, lists and dictionaries."
            ) from error
        return put_seal(bytearray(data, "ascii"), len(_START), self._shelf.keys.files)

    def _decode(self, data: bytes, kind: str, name: str) -> dict[str, Any]:
        what = f"record {name!r} of kind {kind}"
        if not data.startswith(_START):
            raise CorruptGistError(f"{what}: {len(data)} bytes are not a record. Restore the file, or delete it.")
        check_seal(data, len(_START), self._shelf.keys.files)
        values = parse_json(data)
        if values.get("format") != _FORMAT:
            raise CorruptGistError(
                f"{what} has format {values.get('format')!r}: this version reads {_FORMAT}. Update ultragist-rag."
            )
        if (values.get("kind"), values.get("name")) != (kind, name) or not isinstance(values.get("payload"), dict):
            raise CorruptGistError(f"{what}: its file is that of another record. Restore it, or delete it.")
        return dict(values)
