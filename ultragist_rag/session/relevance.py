"""Which segments of a session bear on a question.

Is        vectors of segments, kept in the pages of the archive; the best ones for a question; how exactly they fit.
Flow      rag.embeddings, rendering, pages -> [relevance] -> conversation.
Change    what a vector is made of, how the slots are divided among what was found.
Not here  embeddings themselves -> rag/embeddings.py.
Holds     whatever is chosen takes no more slots than the session has; the archive is read page by page.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Collection, Sequence
from heapq import nlargest
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ultragist_rag.errors import InputError
from ultragist_rag.layout.session_plan import Entry, SessionPlan
from ultragist_rag.rag.embeddings import Embeddings
from ultragist_rag.session.pages import Page
from ultragist_rag.session.rendering import Rendering
from ultragist_rag.session.state import Part, State
from ultragist_rag.session.turns import Said

__all__ = ["Relevance", "divide"]

Vectors = Float[ndarray, "segments dims"]


class Relevance:
    """Embeds the segments of a session."""

    def __init__(self, embeddings: Embeddings, rendering: Rendering, segment_tokens: int) -> None:
        """Embed what a rendering writes.

        Args:
            embeddings: They are not fitted here: a session begins without a corpus.
            rendering: How turns are written.
            segment_tokens: Tokens of a segment at most.
        """
        self.embeddings = embeddings
        self._rendering, self._segment_tokens = rendering, segment_tokens

    def note(self, turns: Sequence[tuple[int, Said]]) -> dict[str, Any]:
        """Return the vectors of a page as JSON values, to be kept with it."""
        vectors = self._embed([said for _, said in turns])
        data = zlib.compress(vectors.astype("<f2").tobytes())
        return {"by": self.embeddings.name, "n": len(vectors), "data": base64.b64encode(data).decode("ascii")}

    def best(self, state: State, question: str, k: int, without: Collection[Part]) -> list[Part]:
        """Return the segments that are nearest to a question, the best one first.

        Args:
            state: The session.
            question: In words.
            k: How many at most.
            without: Segments that are not looked at.

        Returns:
            Segments.

        Raises:
            InputError: If `k` is below 1.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"select is {k!r}, but must be a number of segments of at least 1.")
        wanted = self.embeddings.embed_query(question)
        n_segments = {turn.id: len(turn.lengths) for turn in state.turns}
        scored: list[tuple[float, Part]] = []
        for page in state.archive.read():
            parts = [(number, place) for number in page.turns for place in range(n_segments[number])]
            scores = self._vectors(page, len(parts)) @ wanted
            rows = ((float(score), part) for part, score in zip(parts, scores, strict=True) if part not in without)
            scored = nlargest(k, [*scored, *rows])
        return [part for _, part in scored]

    def _vectors(self, page: Page, n_parts: int) -> Vectors:
        noted = page.vectors
        if noted is None or (noted["by"], noted["n"]) != (self.embeddings.name, n_parts):  # or it was cut otherwise
            return self._embed(list(page.turns.values()))
        data = zlib.decompress(base64.b64decode(noted["data"]))
        return np.frombuffer(data, "<f2").reshape(noted["n"], -1).astype(np.float32)

    def _embed(self, several: Sequence[Said]) -> Vectors:
        return np.asarray(self.embeddings.embed_documents([text for said in several for text in self._texts(said)]))

    def _texts(self, said: Said) -> list[str]:
        return [self._rendering.codec.decode(ids) for ids in self._rendering.parts(said, self._segment_tokens)]


def divide(plan: SessionPlan, entries: Sequence[Entry], room: int) -> dict[Part, int]:
    """Choose the lowest ratio at which segments fit; at the highest one as many of the first ones as do.

    Args:
        plan: With the ladder.
        entries: Segments, the most important one first.
        room: Slots that they may take together.

    Returns:
        Ratios by segment.
    """
    for level, ratio in enumerate(plan.ladder):
        sizes = np.cumsum([plan.slots_at(entry, level) for entry in entries], dtype=int)
        if not len(sizes) or sizes[-1] <= room or level + 1 == len(plan.ladder):
            fitting = entries[: int((sizes <= room).sum())]
            return {entry.name: ratio for entry in fitting}  # type: ignore[misc]
    return {}
