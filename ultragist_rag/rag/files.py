"""Read the user's own text files, and say plainly what cannot be read.

Is        a folder in, (relative path, text) pairs out.
Change    which files count as text.
Holds     every file named in the result was read whole, as UTF-8; one that cannot be stops the run.
"""

from __future__ import annotations

from pathlib import Path

from ultragist_rag.errors import InputError

__all__ = ["SUFFIXES", "read_folder"]

SUFFIXES = (".txt", ".md")
"""Files that are read; all others in the folder are left alone."""


def read_folder(folder: Path) -> list[tuple[str, str]]:
    """Read the `.txt` and `.md` files of a folder and the folders in it; hidden ones are left out.

    Args:
        folder: Where the files are.

    Returns:
        Path relative to the folder, with slashes, and text of each file, sorted by path.

    Raises:
        InputError: If the folder is missing or holds no such file, or a file is empty, binary or unreadable.
    """
    if not folder.is_dir():
        raise InputError(
            f"folder {str(folder)!r} does not exist or is not a folder. Name a folder with .txt or .md files."
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = [(path.relative_to(folder), path) for path in paths]
    shown = [(name, path) for name, path in names if not any(part.startswith(".") for part in name.parts)]
    if not shown:
        raise InputError(f"folder {str(folder)!r} holds no .txt or .md file. Put some there, or name another folder.")
    return [(name.as_posix(), _read(path)) for name, path in shown]


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"file {str(path)!r} cannot be read: {error.strerror}. Remove it or change its rights."
        ) from error
    if b"\0" in data:
        raise InputError(f"file {str(path)!r} is binary, not text. Remove it, or convert it to UTF-8 text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"file {str(path)!r} is binary or not UTF-8: byte {error.start} is no text. Convert it to UTF-8 text."
        ) from error
    if not text.strip():
        raise InputError(f"file {str(path)!r} is empty. Remove it, or put text into it.")
    return text
