"""A byte store in any place that fsspec reaches: `s3://bucket/prefix`, `gs://bucket/prefix` and many more.

Is        one object per key; reading, writing, removing and listing through fsspec, without its caches.
Flow      indexed_bytes -> [remote_bytes] -> store. Imports no torch, and fsspec only when a store is opened.
Change    how objects are named and asked for.
Not here  bounds and eviction -> indexed_bytes.py.
Holds     an object store shows an object as a whole or not at all; the last key of a put is written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from ultragist_rag.errors import InputError
from ultragist_rag.store.base import SCHEMES, is_key, without_password
from ultragist_rag.store.indexed_bytes import IndexedBytes

__all__ = ["RemoteBytes", "open_remote"]

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


class RemoteBytes(IndexedBytes):
    """Bytes in objects `root/folder/id.gist`, `.source` and `.record`."""

    def __init__(self, files: Any, root: str, name: str, max_bytes: int | None = None) -> None:
        super().__init__(name, max_bytes)
        self._files = files
        self._root = root.rstrip("/")

    def contains(self, key: str) -> bool:
        """Say whether something is stored under a key; this is no use of it.

        Raises:
            StoreError: If the place cannot be read.
        """
        with self._asking():
            return is_key(key) and bool(self._files.exists(self._path(key)))

    def _read(self, key: str, n_bytes: int | None) -> bytes | None:
        part = {} if n_bytes is None else {"start": 0, "end": n_bytes}
        try:
            return bytes(self._files.cat_file(self._path(key), **part))
        except FileNotFoundError:
            return None

    def _write(self, items: Mapping[str, bytes]) -> None:
        for key, data in items.items():
            path = self._path(key)
            try:
                self._files.pipe_file(path, data)
            except FileNotFoundError:  # a place with real folders; no bucket is ever made
                top = path[: path.index("/", 1)]
                if not self._files.exists(top):
                    raise
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(path, data)

    def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(key))

    def _list(self, folder: str) -> dict[str, int]:
        try:
            found = self._files.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        sizes = {path[len(self._root) + 1 :]: int(status["size"]) for path, status in found.items()}
        return {key: size for key, size in sizes.items() if is_key(key) and key.startswith(folder)}

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root


def open_remote(url: str, max_bytes: int | None, **options: Any) -> RemoteBytes:
    """Open a place by a URL that fsspec knows.

    Args:
        url: `scheme://bucket/prefix`, or whatever the scheme asks for. `+fsspec` behind the scheme keeps apart what
            has the name of a place of our own: `memory+fsspec://name`.
        max_bytes: Bound on all objects, without the index.
        options: The scheme's `storage_options`, for instance `key`, `secret` and `endpoint_url` for `s3://`.

    Returns:
        The store. Nothing is asked of the place yet.

    Raises:
        InputError: If fsspec does not know the scheme, a package is missing, or the URL or the options do not fit.
    """
    scheme, _, location = url.partition("://")
    scheme = scheme.removesuffix("+fsspec")
    name = without_password(url)
    try:
        import fsspec

        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme, "remote")
        raise InputError(f"{name} needs another package ({error}): install ultragist-rag[{extra}].") from error
    except ValueError as error:
        known = ", ".join(f"{one}://" for one in sorted(SCHEMES))
        raise InputError(
            f"no store for {scheme}://: use a folder, one of {known}, or a scheme of fsspec such as s3:// or gs://. "
            "Install what it needs: ultragist-rag[redis], [s3], [gs] or [remote]."
        ) from error
    try:
        files, root = fsspec.url_to_fs(f"{scheme}://{location}", skip_instance_cache=True, **options)
    except Exception as error:  # each file system checks its options in its own way
        raise InputError(f"{name} cannot be opened: {error}. Correct the URL or the options.") from error
    if not root.strip("/"):
        raise InputError(f"{name} names no place: write {scheme}://bucket/prefix.")
    files.dircache.use_listings_cache = False  # others write there, too
    return RemoteBytes(files, root, name, max_bytes)
