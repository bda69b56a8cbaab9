"""Keep contexts within the tokens that they may have: choose documents that fit, cut a text that is too long.

Is        `Room`: counts texts, fills a context, cuts a text.
Flow      data -> [fitting] -> the task files of this folder.
Change    what stays of a text that is too long, what stands for the rest.
Not here  what a method makes of a context -> methods.py.
Holds     what comes out fits; the documents and the passage that hold the answer stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ultragist_rag.evaluation.data import Source

__all__ = ["SEPARATOR", "Room"]

SEPARATOR = "\n\n"
"""What stands between documents: it takes room as well."""

_GAP = "\n...\n"
_CHARS_PER_TOKEN, _TRIES, _GOOD, _AIM = 4, 12, 0.95, 0.98


class Room:
    """The tokens that the contexts of a source may have.

    Args:
        source: Says how many, and counts.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sizes: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self._source.room

    def size(self, *texts: str) -> int:
        """Count the tokens of documents, each with a separator behind it; each text is counted once only."""
        for text in texts:
            if text not in self._sizes:
                self._sizes[text] = self._source.count(text + SEPARATOR)
        return sum(self._sizes[text] for text in texts)

    def fits(self, *texts: str) -> bool:
        """Tell whether documents fit together."""
        return self.size(*texts) <= self.tokens

    def fill(self, gold: Sequence[str], others: Iterable[str], most: int) -> list[str] | None:
        """Choose documents.

        Args:
            gold: Those that must be there.
            others: Those that may be, the most wanted first; three times as many are tried as may be taken.
            most: Documents in all, at most; all of `gold` are taken.

        Returns:
            `gold`, then those of the others that fit; None if `gold` does not fit.
        """
        chosen = list(gold)
        left = self.tokens - self.size(*gold)
        if left < 0:
            return None
        for other in islice(others, 3 * most):
            if len(chosen) >= most:
                break
            if self.size(other) <= left:
                chosen.append(other)
                left -= self.size(other)
        return chosen

    def cut(self, text: str, evidence: tuple[int, int] | None = None, room: int | None = None) -> str:
        """Cut a text that is too long.

        Args:
            text: The text.
            evidence: First and last character of the passage that holds the answer, if it is known: what is kept lies
                around it, or is its beginning if it is too long by itself. Else the beginning and the end are kept,
                half of the room each.
            room: Tokens that it may have; default all.

        Returns:
            The text, or the longest part of it that was found to fit.
        """
        room = self.tokens if room is None else room
        if self.size(text) <= room:
            return text
        keep = _ends(text) if evidence is None else _around(text, *evidence)
        length = min(len(text), max(1, room * _CHARS_PER_TOKEN))
        for _ in range(_TRIES):
            n_tokens = self._source.count(keep(length) + SEPARATOR)
            if n_tokens <= room and (length >= len(text) or n_tokens >= _GOOD * room):
                return keep(length)
            length = max(1, min(len(text), int(length * room / n_tokens * _AIM)))
        while length > 1 and self._source.count(keep(length) + SEPARATOR) > room:
            length = length * 9 // 10
        return keep(length)


def _ends(text: str) -> Callable[[int], str]:
    return lambda length: text[: length - length // 2].rstrip() + _GAP + text[len(text) - length // 2 :].lstrip()


def _around(text: str, start: int, end: int) -> Callable[[int], str]:
    def keep(length: int) -> str:
        first = start if length < end - start else (start + end - length) // 2
        first = max(0, min(first, len(text) - length))
        return text[first : first + length].strip()

    return keep
