"""Questions of many threads and coroutines, decoded side by side.

Is        `BatchQueue`: requests wait in one line, and the first ones that can be decoded together become a batch.
Flow      memory/rows, requests, request -> [queue] -> `UltraGist.batching`.
Change    when a batch is closed, who is refused, what is counted.
Not here  what a request is told -> request.py; rows with settings of their own -> memory/rows.py; whose turn it is with
          the engine -> requests.py.
Holds     an answer is the one that its prompt gets alone; first come, first served; nobody waits for a request that is
          bad, cancelled or late; a thread runs only while there are requests.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ultragist_rag.batching.request import Request, closed
from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError, QueueFullError
from ultragist_rag.memory.attribution import SourceKind, check_sources
from ultragist_rag.memory.decoding import Decoding, end_tokens
from ultragist_rag.memory.generate import askable
from ultragist_rag.memory.pieces import as_batch
from ultragist_rag.memory.rows import decode_rows, n_side_by_side
from ultragist_rag.memory.stream import TextStream
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.requests import in_thread, turn

__all__ = ["BatchQueue", "BatchStats"]

_POLL = 0.05
"""Seconds between two looks at whether a waiting request is still wanted."""


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What a queue has done so far.

    Attributes:
        n_waiting: Requests that wait for a batch now.
        n_answered: Requests that were answered.
        n_failed: Requests that ended with an error of their own, or of the model.
        n_left: Requests that were cancelled or late.
        n_refused: Requests that a full or closed queue refused.
        batches: How many batches there were of each size.
    """

    n_waiting: int
    n_answered: int
    n_failed: int
    n_left: int
    n_refused: int
    batches: Mapping[int, int]


class BatchQueue:
    """Collects questions from threads and coroutines and decodes them side by side. `UltraGist.batching` makes one.

    An idle engine serves a request at once. Otherwise the next batch is closed when it is full, or when its oldest
    request has waited for `max_wait` seconds and the engine is free. A batch that runs takes nobody in; each of its
    requests gets its answer as soon as that is complete.

    Example:
        >>> import torch
        >>> from ultragist_rag.testing import tiny_engine
        >>> with tiny_engine().batching(max_batch=8) as queue:
        ...     len(queue.answer(torch.tensor([[7, 8]]), max_new_tokens=3).ids)
        3
    """

    def __init__(
        self, engine: UltraGist, *, max_batch: int = 16, max_wait: float = 0.01, max_waiting: int = 64
    ) -> None:
        """Begin with no requests.

        Args:
            engine: The engine. Its batches take turns with whatever else waits for its turn.
            max_batch: Requests of a batch at most.
            max_wait: Seconds that a request waits for company at most. The engine counts as idle when it had nothing to
                do for so long.
            max_waiting: Requests that may wait for a batch; one more is refused.

        Raises:
            InputError: If a number is out of range.
        """
        for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if not 0 <= max_wait < threading.TIMEOUT_MAX:
            raise InputError(f"max_wait is {max_wait!r}, but must be seconds, at least 0.")
        self.engine, self.max_batch, self.max_wait, self.max_waiting = engine, max_batch, max_wait, max_waiting
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._is_closed = False
        self._counts: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()

    def answer(
        self,
        pieces: Any,
        *,
        timeout: float | None = None,
        sources: SourceKind | None = None,
        on_token: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> Any:
        """Answer one prompt, in company if there is any; threads may call this at the same time.

        Args:
            pieces: Text, ids of shape (1, tokens) and memories in any order, in a list.
            timeout: Seconds that the request may take, waiting included.
            sources: As for `UltraGist.answer`.
            on_token: Called with every token id as soon as it is decoded, from the thread that decodes for all: it
                must be quick, and must not ask this queue.
            settings: Of `Decoding`. `cancelled` is asked while waiting, too. Requests with several beams or answers, or
                with settings that are transformers' own, are batches of one.

        Returns:
            The `Answer`; a list of them if num_return_sequences > 1. One that was cancelled has what was decoded so
            far.

        Raises:
            InputError: If a piece or a setting does not fit, or there are several prompts.
            ContextOverflowError: If slots, tokens and new tokens exceed the positions of the model.
            QueueFullError: If so many requests wait already; at once.
            RequestTimeoutError: If the time was over before the answer was complete.
            UltraGistError: If the queue is closed.
        """
        prompt, decoding = self._checked(pieces, settings, sources)
        if on_token is not None and decoding.rows > 1:
            raise InputError(
                "on_token is given the tokens of one answer: leave it out, or num_beams and several answers."
            )
        return self._ask(Request(self.engine, prompt, decoding, on_token, timeout, sources))

    async def aanswer(self, pieces: Any, **settings: Any) -> Any:
        """Answer as `answer` does, without holding up the event loop; cancelling the task cancels the request."""

        def call(abandoned: Callable[[], bool]) -> Any:
            asked = settings.get("cancelled")
            cancelled = abandoned if asked is None else lambda: abandoned() or asked()
            return self.answer(pieces, **{**settings, "cancelled": cancelled})

        return await in_thread(call)

    def stream(self, pieces: Any, *, timeout: float | None = None, **settings: Any) -> TextStream:
        """Answer one prompt bit by bit; it enters the queue when the first piece is asked for.

        Args:
            pieces: As for `answer`.
            timeout: Seconds that the request may take from then on.
            settings: Of `Decoding`; no beams and one answer only.

        Returns:
            A stream of texts, or of ids if the engine has no tokenizer. Reading it raises what `answer` raises.

        Raises:
            InputError: If a piece or a setting does not fit, or there are several prompts.
            ContextOverflowError: If slots, tokens and new tokens exceed the positions of the model.
        """
        prompt, decoding = self._checked(pieces, settings, None)
        if decoding.rows > 1:
            raise InputError("a stream gives one answer: use answer for beams and several answers.")

        def work(feed: Any) -> None:
            mine = replace(decoding, cancelled=feed.cancelled_or(decoding.cancelled))
            self._ask(Request(self.engine, prompt, mine, feed.items.put, timeout, None))

        tokenizer = self.engine.tokenizer
        codec = None if tokenizer is None else TextCodec.of(tokenizer)
        return TextStream(work, end_tokens(self.engine.model, tokenizer, decoding), codec, decoding.stop)

    def stats(self) -> BatchStats:
        """Count what was done so far."""
        with self._changed:
            counts = {f"n_{name}": self._counts[name] for name in ("answered", "failed", "left", "refused")}
            return BatchStats(n_waiting=len(self._waiting), batches=dict(self._batches), **counts)

    def close(self) -> None:
        """Refuse what waits and what comes, and return when the batch that runs is done."""
        with self._changed:
            self._is_closed = True
            for request in self._waiting:
                request.refuse()
            self._waiting.clear()
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    def __enter__(self) -> BatchQueue:
        """Give the queue itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _checked(self, pieces: Any, settings: Mapping[str, Any], sources: SourceKind | None) -> tuple[Any, Decoding]:
        """Refuse in the thread of the caller what cannot be asked, so that it never gets into a batch."""
        check_sources(sources)
        batch, is_single = as_batch(pieces)
        if not is_single:
            raise InputError("the queue takes one prompt at a time: ask from several threads, or use UltraGist.answer.")
        decoding = Decoding.of(settings)
        decoding.criteria(self.engine.tokenizer, 0)
        (prompt,) = askable(self.engine, batch, decoding)
        return prompt, decoding

    def _ask(self, request: Request) -> Any:
        self._join(request)
        try:
            while not request.done.wait(_POLL if request.turn.waits_for_others else None):
                if request.turn.cancelled():
                    break
            return request.result(self.engine)
        finally:
            self._leave(request)

    def _join(self, request: Request) -> None:
        with self._changed:
            if self._is_closed or len(self._waiting) >= self.max_waiting:
                self._counts["refused"] += 1
                if self._is_closed:
                    raise closed()
                raise QueueFullError(
                    f"{len(self._waiting)} requests wait for a batch, and max_waiting is {self.max_waiting}: try again "
                    "later, or raise max_waiting."
                )
            if self._worker is None:
                worker = threading.Thread(target=self._work, name="ultragist-batching")
                worker.start()
                self._worker = worker
            self._waiting.append(request)
            self._changed.notify_all()

    def _leave(self, request: Request) -> None:
        with self._changed:
            request.leave()
            if request in self._waiting:
                self._waiting.remove(request)
            self._counts[request.outcome] += 1
            self._changed.notify_all()

    def _work(self) -> None:
        """Serve batches until nothing came for a while."""
        batch = self._next()
        while batch:
            self._serve(batch)
            batch = self._next(gathers=True)

    def _next(self, gathers: bool = False) -> list[Request]:
        """Take the next batch; nothing means that the thread ends."""
        with self._changed:
            if gathers:
                self._changed.wait_for(lambda: self._waiting or self._is_closed, self.max_wait)
                since = self._waiting[0].since if self._waiting else 0.0
                self._changed.wait_for(self._is_full, max(0.0, since + self.max_wait - time.monotonic()))
            batch = [self._waiting.popleft() for _ in range(self._n_next())]
            if not batch:
                self._worker = None
            return batch

    def _n_next(self) -> int:
        if not self._waiting:
            return 0
        return n_side_by_side(list(islice(self._waiting, self.max_batch)), self.engine.max_positions)

    def _is_full(self) -> bool:
        """Say whether to wait no longer: nobody who came could join the next batch, or nobody waits any more."""
        n = self._n_next()
        return n in (0, self.max_batch) or n < len(self._waiting)

    def _serve(self, batch: list[Request]) -> None:
        """Decode a batch when it is its turn. Every request of it is over afterwards."""

        def is_unwanted() -> bool:
            return self._is_closed or all(request.is_unwanted for request in batch)

        try:
            with turn(self.engine, max_waiting=sys.maxsize, cancelled=is_unwanted) as mine:
                if not mine.cancelled():
                    self._decode(batch)
        except BaseException as error:
            for request in batch:
                request.end(error)
        for request in batch:
            if not request.is_over:
                request.refuse()

    def _decode(self, batch: list[Request]) -> None:
        with self._changed:
            self._batches[len(batch)] += 1
        error = self._try(batch)
        if error is not None and len(batch) == 1:
            batch[0].end(error)
        for request in batch if error is not None else ():
            if not request.is_over:
                self._decode([request])  # memory may have run out
        for request in batch:
            request.find_sources(self.engine)

    def _try(self, batch: list[Request]) -> Exception | None:
        """Decode; return what went wrong without its frames, which hold tensors."""
        try:
            if batch[0].decoding.rows > 1:
                batch[0].decode_several(self.engine)
            else:
                decode_rows(self.engine, batch)
        except Exception as error:
            return error.with_traceback(None)
        return None
