"""Cut a text into chunks for retrieval: at line ends, each with its title and section as header.

Is        string work: text in, `Chunk`s out.
Change    how headings are recognised, how long lines are split.
Holds     no chunk is longer than `max_chars`; every line of the text stands in exactly one chunk, in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ultragist_rag.errors import InputError

_HEADING = re.compile(r"^(#{1,6})\s+(.*\S)\s*$")
_MIN_CHARS = 100


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document: `text` begins with the header `title - section` and a blank line."""

    text: str
    title: str
    section: str


def split_document(text: str, title: str = "", max_chars: int = 1000) -> list[Chunk]:
    r"""Cut a text (plain or Markdown) into chunks of whole lines.

    A first-level heading sets the title, a deeper one the section; both head every chunk they cover. A line that is
    too long for one chunk is cut at a space.

    Args:
        text: The document.
        title: Title to use until the text has a first-level heading.
        max_chars: Longest chunk, header included, in characters.

    Returns:
        The chunks in reading order; none for a text without any words.

    Raises:
        InputError: If `max_chars` is below 100 characters.

    Example:
        >>> [chunk.text for chunk in split_document("# Togo\n## Coast\nIt is short.\nIt is sandy.")]
        ['Togo - Coast\n\nIt is short.\nIt is sandy.']
    """
    if max_chars < _MIN_CHARS:
        raise InputError(f"max_chars is {max_chars}: a chunk needs at least {_MIN_CHARS} characters.")
    chunks: list[Chunk] = []
    for name, section, lines in _sections(text, title):
        header = " - ".join(part for part in (name, section) if part)[: max_chars // 2]
        room = max_chars - len(header) - 2
        body = ""
        for piece in (piece for line in lines for piece in _fitting(line, room)):
            if body and len(body) + 1 + len(piece) > room:
                chunks.append(_chunk(header, body, name, section))
                body = ""
            body = f"{body}\n{piece}" if body else piece
        if body.strip():
            chunks.append(_chunk(header, body, name, section))
    return chunks


def _chunk(header: str, body: str, title: str, section: str) -> Chunk:
    return Chunk(f"{header}\n\n{body}" if header else body, title, section)


def _sections(text: str, title: str) -> Iterator[tuple[str, str, list[str]]]:
    section, lines = "", []
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading is None:
            if line.strip():
                lines.append(line.rstrip())
            continue
        yield title, section, lines
        lines = []
        if len(heading.group(1)) == 1:
            title, section = heading.group(2), ""
        else:
            section = heading.group(2)
    yield title, section, lines


def _fitting(line: str, room: int) -> Iterator[str]:
    while len(line) > room:
        cut = line.rfind(" ", 1, room + 1)
        cut = cut if cut > 0 else room
        yield line[:cut].rstrip()
        line = line[cut:].lstrip()
    if line:
        yield line
