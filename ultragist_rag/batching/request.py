"""One request of a batch queue: how it ends, and what the one who asked is told.

Is        `Request`, a row that somebody waits for.
Flow      memory/rows, requests -> [request] -> queue.
Change    what counts as answered, failed, left or refused.
Not here  who waits for whom -> queue.py; how a row is decoded -> memory/rows.py.
Holds     a request ends once; whoever left it gets nothing any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import UltraGistError
from ultragist_rag.memory.attribution import SourceKind, with_sources
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import Answer, answer, cut_answer
from ultragist_rag.memory.rows import Row
from ultragist_rag.requests import Turn

__all__ = ["Request", "closed"]


class Request(Row):
    """A request on its way through the queue."""

    def __init__(
        self,
        engine: UltraGist,
        prompt: Any,
        decoding: Decoding,
        on_token: Callable[[int], object] | None,
        timeout: float | None,
        sources: SourceKind | None,
    ) -> None:
        self.turn = Turn(timeout, decoding.cancelled)
        super().__init__(engine, prompt, replace(decoding, cancelled=self.turn.cancelled), on_token)
        self.since = time.monotonic()
        self.done = threading.Event()
        self.outcome = "left"
        self._sources = sources
        self._answers: list[Answer] = []

    def end(self, error: BaseException | None = None) -> None:
        """Take no more tokens, and hand out what there is, unless its sources are still to be found out."""
        super().end(error)
        if self.error is not None or self._sources is None:
            self.done.set()

    def leave(self) -> None:
        """Want nothing any more: the row ends with the next token, and the batch with its last row."""
        self.is_over = True
        self.done.set()

    def refuse(self) -> None:
        """End, since the queue is closed."""
        self.outcome = "refused"
        self.end(closed())

    def decode_several(self, engine: UltraGist) -> None:
        """Decode what takes several rows, in the usual way."""
        decoding = replace(self.decoding, cancelled=lambda: self.is_unwanted)
        (self._answers,) = answer(engine, [self.prompt], decoding)
        self.end()

    def find_sources(self, engine: UltraGist) -> None:
        """Find out what the answers were read from, if asked to."""
        if self.done.is_set() or self._sources is None:
            return
        try:
            (self._answers,) = with_sources(engine, [self.prompt], [self._cut(engine)], self._sources)
        except Exception as error:
            self.error = error
        self.done.set()

    def result(self, engine: UltraGist) -> Any:
        """Return what was asked for, or what there is if nobody waits for the rest.

        Raises:
            Exception: What went wrong.
        """
        if self.error is not None:
            if self.outcome != "refused":
                self.outcome = "failed"
            raise self.error
        answers = self._cut(engine)
        if self.done.is_set() and not any(one.finish == "cancelled" for one in answers):
            self.outcome = "answered"
        else:
            self.turn.check()
        return answers[0] if len(answers) == 1 else answers

    def _cut(self, engine: UltraGist) -> list[Answer]:
        if self._answers:
            return self._answers
        ids = torch.tensor(self.ids, dtype=torch.long)
        return [cut_answer(engine, self.prompt, ids, self.decoding)] * self.decoding.num_return_sequences


def closed() -> UltraGistError:
    """Make the error of a closed queue."""
    return UltraGistError("the queue is closed and answers no more requests: make another one with UltraGist.batching.")
