"""Forget what the operating system keeps of files in memory, so that reading them reads the disk.

Is        `drop_pages`, and `share_resident`, which asks the system whether that worked.
Flow      [page_cache] -> suites.
Holds     nothing but the page cache is touched: files are written out before.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["drop_pages", "files_of", "read_all", "share_resident"]


def files_of(folder: Path) -> list[Path]:
    """Files in a folder and below that are not empty."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def drop_pages(files: Iterable[Path]) -> None:
    """Write files out and drop their pages; where the system has no `posix_fadvise`, nothing is dropped."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def read_all(files: Iterable[Path]) -> int:
    """Read files from first to last byte; tell how many bytes."""
    return sum(len(path.read_bytes()) for path in files)


def share_resident(files: Iterable[Path]) -> float:
    """Tell what share of the pages of files lies in memory, by `mincore`; 1 where it cannot be asked."""
    ask = getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
    if ask is None:
        return 1.0
    n_resident = n_pages = 0
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
            flags = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
            start = ctypes.c_char.from_buffer(pages)
            failed = ask(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), flags)
            del start
            n_resident += len(flags) if failed else sum(flag & 1 for flag in flags)
            n_pages += len(flags)
    return n_resident / max(1, n_pages)
