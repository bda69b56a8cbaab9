"""Find what gists lose in a text: numbers, ids, codes, addresses and rare names.

Is        plain text rules; no tensors. `(text, offsets) -> a flag for each token`.
Flow      [spans] -> verbatim.py.
Paper     none.
Change    what counts as a number, a code or a rare name.
Not here  which tokens a model finds improbable -> verbatim.py.
Holds     a token is chosen if any character of it belongs to such a word; spaces and punctuation around are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Offsets", "code_words", "exact_words", "flag_words", "is_of_word"]

Offsets = Sequence[tuple[int, int]]
"""First character and character behind the last one, for each token."""

_JOINERS = frozenset("-–−_.,:;/\\'’+#@%$€£=&?~*^°")
_AROUND = ".,:;/\\'’?&=*~"
_MAIL = re.compile(r"(?<![^\s@<>()\[\],;:\"])[^\s@<>()\[\],;:\"]+@[^\s@<>()\[\],;:\"]+\.[^\W\d_]{2,}")
_CODE = re.compile(r"(?=.+[-_/].)\w+(?:[-/]\w+)*")
"""Each pattern reads a word in one way only, so that no text takes more time than its length."""

_INNER_CAPITAL = re.compile(r"[^\W\d_]{2,}")
_RARE_TOKENS = 4


def exact_words(text: str, offsets: Offsets) -> NDArray[np.bool_]:
    """Choose the tokens of numbers, ids, codes, e-mail addresses and rare names.

    To what `code_words` chooses come rare names: capitalised words within a sentence that the tokenizer needs at least
    four tokens for, where they come first.

    Args:
        text: Any text.
        offsets: Of its tokens.

    Returns:
        A flag for each token.
    """
    starts = np.array([start for start, _ in offsets], np.int64)
    names: dict[str, tuple[int, int]] = {}
    for start, stop in _words(text):
        if _is_name(text, start, text[start:stop]) and _n_tokens(starts, start, stop) >= _RARE_TOKENS:
            names.setdefault(text[start:stop], (start, stop))
    return code_words(text, offsets) | flag_words(list(names.values()), offsets)


def code_words(text: str, offsets: Offsets) -> NDArray[np.bool_]:
    """Choose the tokens of numbers, ids, codes and e-mail addresses.

    A word that has a digit of any script (letters, signs and separators around it included, so dates, amounts, UUIDs
    and version numbers are whole); an e-mail address or URL; a code in capitals with `-`, `_` or `/`; a word with a
    capital behind a small letter. Letters of scripts without capitals never join a number, since words of some of
    these scripts stand without spaces.

    Args:
        text: Any text.
        offsets: Of its tokens.

    Returns:
        A flag for each token.

    Example:
        >>> text = "Call 0171-55 on 3 May."
        >>> code_words(text, [(0, 4), (4, 9), (9, 12), (12, 15), (15, 17), (17, 21), (21, 22)]).tolist()
        [False, True, True, False, True, False, False]
    """
    chosen = [match.span() for match in _MAIL.finditer(text)]
    chosen += [(start, stop) for start, stop in _words(text) if _is_exact(text[start:stop])]
    return flag_words(chosen, offsets)


def flag_words(words: Sequence[tuple[int, int]], offsets: Offsets) -> NDArray[np.bool_]:
    """Flag the tokens that share a character with any of the words.

    Args:
        words: First character and character behind the last one, for each.
        offsets: Of the tokens.

    Returns:
        A flag for each token.
    """
    n_characters = max((stop for _, stop in (*words, *offsets)), default=0)
    covered = np.zeros(n_characters + 1, np.int64)
    for start, stop in words:
        covered[start:stop] = 1
    before = np.concatenate(([0], np.cumsum(covered)))
    edges = np.array(offsets, np.int64).reshape(-1, 2)
    return np.greater(before[edges[:, 1]], before[edges[:, 0]])


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Give the runs of digits, letters with capitals, and what joins them; punctuation at their ends left out."""
    place = 0
    for is_inside, run in groupby(text, _may_join):
        word = "".join(run)
        begin, place = place, place + len(word)
        bare = word.strip(_AROUND)
        if is_inside and bare:
            start = begin + len(word) - len(word.lstrip(_AROUND))
            yield start, start + len(bare)


def is_of_word(character: str) -> bool:
    """Tell a digit or a letter of a script with capitals; words of some other scripts stand without spaces.

    Args:
        character: One, or none.

    Returns:
        Whether it is one of these.

    Example:
        >>> is_of_word("é"), is_of_word("字"), is_of_word("")
        (True, False, False)
    """
    return character.isdigit() or character.lower() != character.upper()


def _may_join(character: str) -> bool:
    return character in _JOINERS or is_of_word(character)


def _is_exact(word: str) -> bool:
    if any(character.isdigit() for character in word) or "://" in word:
        return True
    if word.isupper():
        return _CODE.fullmatch(word) is not None
    return any(a.islower() and b.isupper() for part in _INNER_CAPITAL.findall(word) for a, b in pairwise(part))


def _is_name(text: str, start: int, word: str) -> bool:
    """Whether a word is capitalised though no sentence or line begins with it."""
    if not word[0].isupper() or word.isupper():
        return False
    before = text[max(0, start - 8) : start].rstrip(" \t\"'([“„‘«")
    return bool(before) and before[-1] not in ".!?\n"


def _n_tokens(starts: NDArray[np.int64], start: int, stop: int) -> int:
    """Count tokens that begin inside a word, one for the space in front of it at most."""
    return int(np.searchsorted(starts, stop) - np.searchsorted(starts, max(start - 1, 0)))
