"""Secrets: where a store takes its secret from, and the keys made of it.

Is        the order argument, environment, then what suits the kind of store; a key file that only its owner can read.
Flow      errors -> [keys] -> store. Imports no torch.
Change    sources of secrets; what a key file must look like.
Not here  what is signed -> refs.py (ids), seal.py (files).
Holds     processes that start at the same moment agree on one key file, and no one reads half a key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Literal

from ultragist_rag.errors import InputError, StoreError

__all__ = ["ENVIRONMENT", "Keys", "SecretSource", "find_secret"]

SecretSource = Literal["process", "keyfile", "required"]
"""Where a secret comes from if none is given: this process, the user's key file, or nowhere."""

ENVIRONMENT = "ULTRAGIST_SECRET"
_SHORT = 16
_KEY_BYTES = 32
_PROCESS_SECRET = secrets.token_bytes(_KEY_BYTES)
_log = logging.getLogger(__name__)


class Keys:
    """What is made of a secret for one namespace: two keys and a folder name.

    Each has its own purpose, so that nothing signed for one can serve the other.

    Attributes:
        ids: Signs ids.
        files: Signs files.
        tag: Part of the folder name; a store opened with another secret looks into another folder.
    """

    def __init__(self, secret: bytes, namespace: str) -> None:
        self.ids = _derive(secret, "ids", namespace)
        self.files = _derive(secret, "files", namespace)
        self.tag = base64.b32encode(_derive(secret, "folder", namespace)[:10]).decode("ascii").lower()


def _derive(secret: bytes, purpose: str, namespace: str) -> bytes:
    record = f"ultragist-rag {purpose}\0{namespace}".encode("utf-8", "surrogatepass")
    return hmac.new(secret, record, hashlib.sha256).digest()


def find_secret(given: str | bytes | None, source: SecretSource) -> bytes:
    """Return the secret of a store: the argument, else ULTRAGIST_SECRET, else what `source` says.

    Args:
        given: The secret the caller passed, if any.
        source: What to do if neither it nor the environment has one.

    Returns:
        The secret.

    Raises:
        InputError: If the given secret is empty, or neither text nor bytes.
        StoreError: If there is no secret for a remote store, or the key file cannot be used.
    """
    if given is None:
        given = os.environ.get(ENVIRONMENT) or None
    if not isinstance(given, str | bytes | bytearray | None):
        raise InputError(f"secret is a {type(given).__name__}, but must be a text or bytes.")
    if given is not None:
        secret = given.encode("utf-8", "surrogateescape") if isinstance(given, str) else bytes(given)
        if not secret:
            raise InputError("secret is empty: pass a long random value, or None for the default.")
        if len(secret) < _SHORT:
            _log.warning("the secret has %d bytes; with fewer than %d, ids can be guessed", len(secret), _SHORT)
        return secret
    if source == "process":
        return _PROCESS_SECRET
    if source == "keyfile":
        import platformdirs

        return _read_or_make(Path(platformdirs.user_config_dir("ultragist-rag", appauthor=False)) / "secret.key")
    raise StoreError(
        f"this store is shared over a network and has no secret: pass secret=... or set {ENVIRONMENT}. Every process "
        "that uses the store needs the same one."
    )


def _read_or_make(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise StoreError(
            f"cannot use the key file {path} ({error.strerror}). Make its folder writable, pass secret=... or "
            f"set {ENVIRONMENT}."
        ) from error


def _make(path: Path) -> None:
    """Write a new key beside its place, then link it there: the first process wins, the others use its key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-key-")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        data = file.read(1024)
    if os.name == "posix" and (stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid()):
        raise StoreError(
            f"key file {path} can be read by other users (mode {stat.S_IMODE(status.st_mode):04o}) or is not yours: "
            f"run `chmod 600 {path}` as its owner, and make a new key if others may have read it."
        )
    try:
        secret = bytes.fromhex(data.decode("ascii"))
    except ValueError:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise StoreError(
            f"key file {path} does not hold {_KEY_BYTES} bytes in hexadecimal. Restore it; if it is lost, delete it: "
            "memories stored with it cannot be found any more and must be made again."
        )
    return secret
