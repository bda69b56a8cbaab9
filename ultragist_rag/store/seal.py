"""Checksums: a file says itself whether it is whole and unaltered.

Is        64 hexadecimal digits at a fixed place, made over all other bytes of the file; the time at which it was
          stored, readable from its first bytes; and a strict JSON reader.
Flow      errors -> [seal] -> source, codec -> store. Imports no torch.
Change    the checksum (raise FORMAT in refs.py).
Holds     changing, adding or dropping any byte of a sealed file is noticed before anything in it is used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from typing import Any, NoReturn

from ultragist_rag.errors import CorruptGistError

__all__ = ["BLANK", "N_HEAD", "check_seal", "parse_json", "put_seal", "stamp", "stored_at"]

BLANK = "0" * 64
"""What stands at the place of the checksum while it is computed."""

N_HEAD = 200
"""First bytes of a file that hold its time of storing."""

_STORED = re.compile(rb'"format":"?[0-9]{1,9}"?,"stored":"([0-9]{1,12}\.[0-9]{3})"')


def stamp(seconds: float) -> dict[str, str]:
    """Return what a file says about the time at which it was stored, behind its format; nothing for 0."""
    return {"stored": f"{seconds:.3f}"} if seconds else {}


def stored_at(head: bytes) -> float:
    """Return the seconds since 1970 at which a file was stored; 0 if it does not say.

    Args:
        head: Its first `N_HEAD` bytes. The checksum, which covers the time, is not checked here.

    Returns:
        The seconds.
    """
    found = _STORED.search(head)
    return float(found.group(1)) if found else 0.0


def put_seal(data: bytearray, at: int, key: bytes) -> bytes:
    """Return `data` with its checksum in the 64 bytes at `at`: HMAC-SHA256, or plain SHA-256 without a key."""
    data[at : at + len(BLANK)] = _digest(data, at, key)
    return bytes(data)


def check_seal(data: bytes, at: int, key: bytes) -> None:
    """Check the checksum at byte `at`.

    Args:
        data: The whole file.
        at: Where the checksum stands.
        key: The key it was made with; empty for plain SHA-256.

    Raises:
        CorruptGistError: If any byte is not what was written, or the key is another one.
    """
    if not hmac.compare_digest(data[at : at + len(BLANK)], _digest(data, at, key)):
        raise CorruptGistError(
            f"the checksum over {len(data)} bytes is wrong: the file was truncated or altered, or written with another "
            "secret. Delete it and store the document again."
        )


def _digest(data: bytes | bytearray, at: int, key: bytes) -> bytes:
    view = memoryview(data)
    state = hmac.new(key, digestmod=hashlib.sha256) if key else hashlib.sha256()
    for part in (view[:at], BLANK.encode("ascii"), view[at + len(BLANK) :]):
        state.update(part)
    view.release()
    return state.hexdigest().encode("ascii")


def parse_json(data: bytes | str) -> Any:
    """Read JSON without what a file of ours never has: a key given twice, NaN, numbers or nesting beyond measure.

    Args:
        data: UTF-8 text.

    Returns:
        The value.

    Raises:
        CorruptGistError: If it is not such JSON.
    """
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptGistError(f"the header is not readable ({error}). Delete the file and store it again.") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")
