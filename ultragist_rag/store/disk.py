"""A byte store in a folder, for any number of processes and threads.

Is        one file per key, written beside its place and renamed; one lock file; the total of bytes in `.usage`.
Flow      base, eviction -> [disk] -> store. Imports no torch.
Change    how files are written, counted and evicted.
Not here  what the files mean -> codec.py, source.py.
Holds     a file under its own name is whole; the files never exceed the bound; what `put` returned for is on disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from ultragist_rag.errors import InputError, StoreError
from ultragist_rag.store.base import GIST, RECORD, SOURCE, Usage, check_items, is_key
from ultragist_rag.store.eviction import check_fit, plan_eviction
from ultragist_rag.store.keys import SecretSource

__all__ = ["DiskBytes", "open_folder"]

_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.002
_TOTAL_DIGITS = 20
_UNKNOWN = b"?" * _TOTAL_DIGITS
_RANKS = {GIST: 0, SOURCE: 1, RECORD: 2}  # the lowest are evicted first, the last never

_Row = tuple[int, int, str, int]  # rank, time of last use in nanoseconds, key, size in bytes


class DiskBytes:
    """Bytes in files `folder/id.gist`, `folder/id.source` and `folder/id.record` below one root.

    Writers take the lock file in turn; readers take none: they open a file that is whole, or find none. The time of
    last use is the file's modification time. While a writer works, `.usage` holds no number, so that whoever comes
    after a killed writer counts anew and sweeps what it left in `.tmp`.
    """

    secret_source: ClassVar[SecretSource] = "keyfile"
    n_readers: ClassVar[int] = 8
    """Memories of a prompt that are read and checked at a time."""

    def __init__(self, location: str, max_bytes: int | None = None) -> None:
        if not location:
            raise InputError("the folder of the store is empty: pass a path, or memory:// for a store in memory.")
        self.root = Path(location)
        self.max_bytes = max_bytes
        self._n_evicted = 0
        self._oldest: list[_Row] = []
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            is_new = not any(self.root.iterdir())
        except OSError as error:
            raise StoreError(_failure(f"cannot use {self.root} as a store", error)) from error
        if max_bytes is not None and not is_new:
            with suppress(StoreError), self._writing():  # files may have been added by hand; a read-only store is fine
                self._set_total(None)

    def get(self, key: str) -> bytes | None:
        """Return the bytes under a key and mark it as used now; None if there is none.

        Raises:
            StoreError: If the file cannot be read.
        """
        data = self.head(key, -1)
        if data is not None:
            with suppress(OSError):  # gone meanwhile, or a read-only store: both are no reason to fail
                _touch(self.root / key)
        return data

    def head(self, key: str, n_bytes: int) -> bytes | None:
        """Return the first bytes under a key, all if `n_bytes` is -1; None if there is none. This is no use of it.

        Raises:
            StoreError: If the file cannot be read.
        """
        if not is_key(key):
            return None
        path = self.root / key
        try:
            with path.open("rb") as file:
                return file.read(n_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(_failure(f"cannot read {path}", error)) from error

    def put(self, items: Mapping[str, bytes], *, quota: int | None = None) -> None:
        """Store all items of one folder or none, in order, and evict what was not used for longest.

        Raises:
            InputError: If a key is malformed.
            StoreError: If they do not fit, or the disk is full or cannot be written.
        """
        folder = check_items(items)
        check_fit(sum(map(len, items.values())) + _TOTAL_DIGITS, self.max_bytes)  # `.usage` counts, too
        with self._writing():
            total = self._total()
            victims = self._plan_quota(folder, items, quota)
            victims |= self._plan_room(items, total, victims)
            self._set_total(None)
            for key in victims:
                total -= self._remove(key) or 0
                self._n_evicted += 1
            total += self._write(items)
            self._set_total(total)

    def delete(self, keys: tuple[str, ...]) -> int:
        """Remove keys; return how many there were.

        Raises:
            StoreError: If a file cannot be removed.
        """
        found = [key for key in keys if self.contains(key)]
        if not found:
            return 0
        with self._writing():
            total = self._total()
            self._set_total(None)
            removed = [self._remove(key) for key in found]
            for folder in {(self.root / key).parent for key in found}:
                _sync_folder(folder)
            self._set_total(total - sum(size or 0 for size in removed))
            return sum(size is not None for size in removed)

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it.

        Raises:
            StoreError: If the folder cannot be looked into.
        """
        try:
            return is_key(key) and (self.root / key).is_file()
        except OSError as error:
            raise StoreError(_failure(f"cannot look for {self.root / key}", error)) from error

    def entries(self, folder: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of everything in a folder."""
        for _, _, key, size in self._scan(self.root / folder):
            yield key, size

    def usage(self) -> Usage:
        """Return how full the store is, counted while no writer is half-way through.

        Raises:
            StoreError: If another process holds the lock for too long.
        """
        with self._writing() if os.access(self.root, os.W_OK) else nullcontext():
            n_bytes = sum(size for *_, size in self._scan_all())
        return Usage(n_bytes + _TOTAL_DIGITS, self.max_bytes, self._n_evicted)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock; turn what the operating system says into StoreErrors."""
        lock = FileLock(self.root / ".lock", timeout=_LOCK_SECONDS, poll_interval=_POLL_SECONDS, mode=0o600)
        try:
            with lock:
                yield
        except Timeout as error:
            raise StoreError(
                f"another process has held {self.root / '.lock'} for {_LOCK_SECONDS:.0f} seconds: nothing was changed. "
                "See what it does, and try again."
            ) from error
        except OSError as error:
            raise StoreError(_failure(f"cannot write to {self.root}", error)) from error

    def _write(self, items: Mapping[str, bytes]) -> int:
        """Write all items beside their places, then rename them; return by how many bytes the store has grown."""
        temporary = self.root / ".tmp"
        temporary.mkdir(mode=0o700, exist_ok=True)
        drafts = {key: temporary / str(index) for index, key in enumerate(items)}
        try:
            for key, draft in drafts.items():
                _write_file(draft, items[key])
            grown = 0
            for key, draft in drafts.items():
                path = self.root / key
                path.parent.mkdir(mode=0o700, exist_ok=True)
                grown += len(items[key]) - (path.stat().st_size if path.exists() else 0)
                draft.replace(path)
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)
        for folder in {(self.root / key).parent for key in items} | {self.root}:
            _sync_folder(folder)
        return grown

    def _total(self) -> int:
        """Return the bytes of all files; count them, and sweep, if the last writer did not come to its end."""
        try:
            return int((self.root / ".usage").read_bytes())
        except (FileNotFoundError, ValueError):
            for draft in (self.root / ".tmp").glob("*"):
                draft.unlink()
            return sum(size for *_, size in self._scan_all())

    def _set_total(self, total: int | None) -> None:
        """Note the total; None while it is not known. Always as many bytes, so that a full disk is no hindrance."""
        data = _UNKNOWN if total is None else b"%0*d" % (_TOTAL_DIGITS, max(total, 0))
        handle = os.open(self.root / ".usage", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(handle, data)
        finally:
            os.close(handle)

    def _plan_quota(self, folder: str, items: Mapping[str, bytes], quota: int | None) -> dict[str, int]:
        """Return keys and sizes of what must go so that a folder keeps to its quota."""
        if quota is None:
            return {}
        sizes = {key: size for _, _, key, size in sorted(self._scan(self.root / folder))}
        return {key: sizes[key] for key in plan_eviction(sizes.items(), items, None, quota)}

    def _plan_room(self, items: Mapping[str, bytes], total: int, gone: Mapping[str, int]) -> dict[str, int]:
        """Return keys and sizes of what must go besides `gone`: drafts lie beside what they replace.

        Raises:
            StoreError: If the items do not fit beside the records.
        """
        victims: dict[str, int] = {}
        if self.max_bytes is None:
            return victims
        n_bytes = sum(map(len, items.values())) + _TOTAL_DIGITS
        left = total - sum(gone.values())
        taken = {*items, *gone}
        while left + n_bytes > self.max_bytes:
            victim = self._next_victim(taken)
            if victim is None:  # only records are left, and what is about to be replaced
                self._oldest.clear()
                replaced = sum(size for *_, key, size in self._scan_all() if key in items)
                check_fit(n_bytes, self.max_bytes, n_kept=left - replaced)
                break
            key, size = victim
            victims[key] = size
            taken.add(key)
            left -= size
        return victims

    def _next_victim(self, taken: set[str]) -> tuple[str, int] | None:
        """Return key and size of what was not used for longest and is not taken; memories before source records.

        The sorted list of an earlier look stays right as long as times are compared: whatever was used or added since
        is younger than all that is left in it. It is made anew when it has no memory left.
        """
        for fresh in (False, True):
            if fresh:
                self._oldest = sorted((row for row in self._scan_all() if row[0] < _RANKS[RECORD]), reverse=True)
            while self._oldest and (fresh or self._oldest[-1][0] == _RANKS[GIST]):
                _, used, key, size = self._oldest.pop()
                with suppress(FileNotFoundError):
                    if key not in taken and (self.root / key).stat().st_mtime_ns == used:
                        return key, size
        return None

    def _remove(self, key: str) -> int | None:
        """Remove a file; return its size, None if it is gone already."""
        path = self.root / key
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return None
        return size

    def _scan_all(self) -> Iterator[_Row]:
        try:
            with os.scandir(self.root) as folders:
                names = [folder.name for folder in folders if folder.is_dir() and not folder.name.startswith(".")]
        except FileNotFoundError:  # somebody removed the whole folder; the next put makes it again
            return
        except OSError as error:
            raise StoreError(_failure(f"cannot read {self.root}", error)) from error
        for name in names:
            yield from self._scan(self.root / name)

    def _scan(self, folder: Path) -> Iterator[_Row]:
        """Yield rank, time of last use, key and size of every file of ours; others are left alone."""
        try:
            with os.scandir(folder) as files:
                for file in files:
                    key = f"{folder.name}/{file.name}"
                    if is_key(key):
                        with suppress(FileNotFoundError):
                            status = file.stat()
                            yield _RANKS[key[key.rindex(".") :]], status.st_mtime_ns, key, status.st_size
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(_failure(f"cannot read {folder}", error)) from error


def open_folder(url: str, max_bytes: int | None) -> DiskBytes:
    """Open the folder that follows `file://` in a URL."""
    return DiskBytes(url.partition("://")[2], max_bytes)


def _write_file(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _touch(path)


def _touch(path: Path) -> None:
    now = time.time_ns()  # finer than what the file system would note by itself
    os.utime(path, ns=(now, now))


def _sync_folder(path: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _failure(what: str, error: OSError) -> str:
    return f"{what}: {error.strerror or error}. Nothing was stored in part; see to the disk's space and permissions."
