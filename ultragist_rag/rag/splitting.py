"""Cut a text into chunks that a reader understands on their own.

Is        a pure function: text in, `Chunk`s out. Markdown headings give title and section; plain text is one section.
Flow      files -> [splitting] -> index.
Change    where a text may be cut, what stands in a chunk's header.
Holds     the bodies of the chunks, one behind the other, are the text's lines; no chunk is longer than the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ultragist_rag.errors import InputError

__all__ = ["MAX_CHARS", "Chunk", "header", "split_text"]

MAX_CHARS = 1_000
"""Longest chunk in characters, header included."""

_SHORTEST_BODY = 100


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, small enough to be one memory.

    Attributes:
        text: Header and body: what is embedded, compressed and read by the model.
        source: Where it comes from, for instance a path relative to the indexed folder.
        title: Title of the document.
        section: Heading above it; empty if there is none.
    """

    text: str
    source: str
    title: str
    section: str


def header(title: str, section: str) -> str:
    """Return the first line of a chunk, without line end.

    Example:
        >>> header("Norway", "Economy"), header("Norway", "")
        ('Norway - Economy', 'Norway')
    """
    return f"{title} - {section}" if section else title


def split_text(text: str, source: str, *, title: str = "", max_chars: int = MAX_CHARS) -> list[Chunk]:
    r"""Cut a text at line ends, so that each chunk stays within one section.

    `# Heading` names the document, `## Heading` and deeper ones name a section; both become the chunk's header and
    leave the body. Blank lines are dropped. A line that alone is too long is cut behind a sentence, else at a space.

    Args:
        text: Plain text or Markdown.
        source: Kept with every chunk.
        title: Used until the text names itself.
        max_chars: Longest chunk in characters, header included.

    Returns:
        Chunks in reading order; none for a text without content.

    Raises:
        InputError: If a header leaves less than 100 characters for the body.

    Example:
        >>> [chunk.text for chunk in split_text("# Oslo\n\n## Climate\nCold.\n## Trade\nFish.", "oslo.md")]
        ['Oslo - Climate\nCold.', 'Oslo - Trade\nFish.']
    """
    chunks: list[Chunk] = []
    for name, section, lines in _sections(text, title):
        head = header(name, section)
        room = max_chars - len(head) - 1
        if room < _SHORTEST_BODY:
            raise InputError(
                f"the header {head[:60]!r} of {source!r} is {len(head)} characters long and leaves {room} of "
                f"{max_chars} for the text. Shorten the heading, or allow longer chunks."
            )
        chunks += [Chunk(f"{head}\n{body}", source, name, section) for body in _bodies(lines, room)]
    return chunks


def _sections(text: str, title: str) -> Iterator[tuple[str, str, list[str]]]:
    section, lines = "", list[str]()
    for line in map(str.strip, text.splitlines()):
        marks, _, heading = line.partition(" ")
        if heading and not marks.strip("#"):
            yield title, section, lines
            title, section = (heading.strip(), "") if marks == "#" else (title, heading.strip())
            lines = []
        elif line:
            lines.append(line)
    yield title, section, lines


def _bodies(lines: list[str], room: int) -> Iterator[str]:
    body = ""
    for line in lines:
        for part in _parts(line, room):
            if body and len(body) + 1 + len(part) > room:
                yield body
                body = part
            else:
                body = f"{body}\n{part}" if body else part
    if body:
        yield body


def _parts(line: str, room: int) -> Iterator[str]:
    while len(line) > room:
        cut = line.rfind(". ", 0, room) + 1 or line.rfind(" ", 0, room + 1)
        cut = cut if cut > 0 else room
        yield line[:cut].rstrip()
        line = line[cut:].lstrip()
    if line:
        yield line
