"""Read the user's own text files, and say plainly what cannot be read.

Is        a folder in, (relative path, text) pairs or `Passage`s out.
Flow      chunking -> [files] -> index.
Change    which files count as text.
Not here  where a text is cut -> chunking.py.
Holds     every file named in the result was read whole, as UTF-8; one that cannot be stops the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ultragist_rag.chunking import split_document
from ultragist_rag.errors import InputError

__all__ = ["SUFFIXES", "Passage", "read_folder", "read_passages"]

SUFFIXES = (".txt", ".md")
"""Files that are read; all others in the folder are left alone."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a document and where it comes from; each becomes one memory.

    Attributes:
        text: What is embedded, compressed and read by the model: a header line and the chunk's lines.
        source: Path of the file, relative to the indexed folder.
        title: Title of the document.
        section: Heading above it; empty if there is none.
    """

    text: str
    source: str
    title: str
    section: str


def read_passages(folder: Path) -> list[Passage]:
    """Read the text files of a folder and cut them into passages of at most 1,000 characters.

    Args:
        folder: Where the files are.

    Returns:
        Passages in the order of the files and of their lines. A file that does not name itself is titled by its name.

    Raises:
        InputError: As `read_folder`, and if no file has text below its headings.
    """
    passages = [
        Passage(chunk.text, source, chunk.title, chunk.section)
        for source, text in read_folder(folder)
        for chunk in split_document(text, title=Path(source).stem.replace("_", " ").replace("-", " "))
    ]
    if not passages:
        raise InputError(f"the files in {str(folder)!r} hold headings only. Put text below them.")
    return passages


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
