"""Words and phrases of texts, to stand in invented documents in place of others.

Is        a pool of the words that some texts hold, common ones drawn more often, and of short phrases out of them.
Flow      texts -> [words] -> profiles, samples.
Change    how much rarer words are drawn, how phrases are cut.
Holds     words that are left out are never drawn, nor are phrases with one of them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ultragist_rag.errors import TrainingError

__all__ = ["Words"]

_WORD = re.compile(r"[^\W\d_]{3,24}")
_RARER = 2.0  # rank = size * uniform ** this; 1 would draw all words alike
_MOST = 20_000_000  # characters that are counted
_PHRASE = 80  # characters at most
_TRIES = 20
_KEPT = re.compile(r"[\w,.'/-]+")


class Words:
    """Draws words and phrases of texts; equal generators draw equal ones.

    Args:
        texts: The texts.
        without: Words that are never drawn.

    Raises:
        TrainingError: If the texts hold no words to draw.
    """

    def __init__(self, texts: Sequence[str], without: Iterable[str] = ()) -> None:
        self._without = frozenset(word.casefold() for word in without)
        total = sum(map(len, texts))
        self._texts = [text for text in texts[:: max(1, -(-total // _MOST))] if len(text) > 2 * _PHRASE]
        counts: Counter[str] = Counter(word for text in self._texts for word in _WORD.findall(text))
        kept = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        kept = [word for word in kept if word.casefold() not in self._without]
        self._names = [word for word in kept if word.istitle()]
        self._others = [word for word in kept if word.islower()]
        if not (self._names and self._others):
            raise TrainingError(
                f"the texts hold no words for real_words: {len(texts)} texts, of which {len(self._texts)} have more "
                f"than {2 * _PHRASE} characters. Name files of longer texts in texts, or leave real_words out."
            )

    def like(self, word: str, rng: random.Random) -> str:
        """A word that begins with a capital letter if `word` does, else one in lower case."""
        pool = self._names if word[0].isupper() else self._others
        return pool[int(len(pool) * rng.random() ** _RARER)]

    def name(self, rng: random.Random) -> str:
        """One or two words with capital letters."""
        return " ".join(self.like("A", rng) for _ in range(rng.choice((1, 1, 1, 2))))

    def phrase(self, rng: random.Random, longest: int = 6) -> str:
        """Up to `longest` words that follow each other in a text; names where none are found."""
        for _ in range(_TRIES):
            text = rng.choice(self._texts)
            at = rng.randrange(len(text) - _PHRASE)
            found = text[at : at + _PHRASE].split("\n")[0].split(" ")[1:-1][: rng.randint(1, longest)]
            words = " ".join(found).strip(".,'/-")
            fits = words and all(map(_KEPT.fullmatch, words.split(" ")))
            if fits and self._without.isdisjoint(re.findall(r"\w+", words.casefold())):
                return words
        return self.name(rng)
