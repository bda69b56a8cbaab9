"""Give an answer piece by piece while it is decoded.

Is        `TextStream`, an iterator fed by a thread that decodes and holds the lock of the model.
Flow      generate -> [stream] -> engine.
Change    what is held back before it is shown, when decoding ends early.
Not here  settings and stopping -> decoding.py; the calls of generate -> generate.py.
Holds     the pieces of a stream, put together, are the text that `generate` gives.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ultragist_rag.errors import InputError, UltraGistError
from ultragist_rag.memory.attribution import SourceKind, check_sources, with_sources
from ultragist_rag.memory.decoding import Decoding, end_tokens
from ultragist_rag.memory.generate import askable, cut_answer, decode
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Engine, as_batch
from ultragist_rag.memory.progressive import decode_progressively
from ultragist_rag.memory.text import Detokenizer, TextCodec

__all__ = ["StopCutter", "TextStream", "decode_into", "stream"]


def stream(
    engine: Engine,
    pieces: Any,
    *,
    progressive: bool = False,
    return_ids: bool = False,
    sources: SourceKind | None = None,
    **settings: Any,
) -> TextStream:
    """Answer one prompt piece by piece. Nothing is decoded before the first piece is asked for.

    Args:
        engine: The engine.
        pieces: One prompt: text, ids of shape (1, tokens) and memories in any order, in a list.
        progressive: Go on compressing while reading and decoding.
        return_ids: Give token ids, one at a time, instead of text; always so without a tokenizer.
        sources: How to find out, when decoding has ended, which memories the answer was read from.
        settings: Of `Decoding`; no beams and one answer only.

    Returns:
        An iterator of texts (or ids), also a context manager; closing or dropping it ends decoding within one token.

    Raises:
        InputError: If a piece or a setting does not fit, the prompt does not end in text, or there are several prompts.
        MemoryMismatchError: If a memory was made otherwise than this engine does.
        ContextOverflowError: If slots, tokens and new tokens of the prompt exceed the positions of the model.
    """
    check_sources(sources, progressive=progressive)
    batch, is_single = as_batch(pieces)
    decoding = Decoding.of(settings)
    if not is_single or decoding.num_beams > 1 or decoding.num_return_sequences > 1:
        raise InputError(
            "a stream gives one answer to one prompt: use generate for batches, beams and several answers."
        )
    prompts = askable(engine, batch, decoding, progressive=progressive)
    if decoding.stop and (return_ids or engine.tokenizer is None):
        raise InputError("stop texts cut text, but this stream gives token ids: use eos_token_id, or ask for text.")

    def work(feed: _Feed) -> None:
        settled = replace(decoding, cancelled=feed.cancelled_or(decoding.cancelled))
        if progressive:
            decode_progressively(engine, prompts, settled, feed)
        else:
            decode_into(feed, engine, prompts[0], settled, sources)

    ends = end_tokens(engine.attachment.model, engine.tokenizer, decoding)
    codec = None if return_ids or engine.tokenizer is None else TextCodec.of(engine.tokenizer)
    return TextStream(work, ends, codec, decoding.stop)


def decode_into(
    feed: _Feed, engine: Engine, prompt: Sequence[Tensor | GistMemory], decoding: Decoding, sources: SourceKind | None
) -> None:
    """Decode an answer for a stream, token by token, and find out what it was read from if asked to.

    Args:
        feed: Of the stream.
        engine: The engine.
        prompt: The prompt of ids and memories.
        decoding: How to decode.
        sources: How to find it out; None for not at all.
    """
    feed.looks_for_sources = sources is not None
    (ids,) = decode(engine, [prompt], decoding, feed)
    if sources is not None:
        answer = cut_answer(engine, prompt, ids, decoding)
        feed.sources = with_sources(engine, [prompt], [[answer]], sources)[0][0].sources


class StopCutter:
    """Cuts text before the first stop text, and holds back what may become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        """Begin with no text."""
        self._stop = stop
        self._held = ""
        self.stopped = False

    @property
    def n_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def push(self, text: str) -> str:
        """Take text; return what can be shown."""
        if self.stopped:
            return ""
        self._held += text
        cuts = [place for place in map(self._held.find, self._stop) if place >= 0]
        if cuts:
            self.stopped = True
            shown, self._held = self._held[: min(cuts)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """Return what was held back."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text with which the stop text begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class _Feed:
    """What the decoding thread and the stream share; holds no reference to the stream, so that it can be dropped."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = threading.Event()
        self.reader: threading.Thread | None = None
        self.is_lost = False  # decoding ended because the reading thread did
        self.looks_for_sources = False
        self.sources: tuple[float, ...] | None = None
        self._skips_prompt = True

    def put(self, tokens: torch.Tensor) -> None:
        """Take what transformers streams: first the prompt, then every new token."""
        if self._skips_prompt:
            self._skips_prompt = False
            return
        for token in tokens.flatten().tolist():
            self.items.put(token)

    def end(self) -> None:
        """Do nothing: the end of the thread is the end."""

    def cancelled_or(self, other: Callable[[], bool] | None) -> Callable[[], bool]:
        """Make the question asked after every token: does anybody still read?"""
        return lambda: self._is_abandoned() or (other is not None and other())

    def _is_abandoned(self) -> bool:
        if self.reader is not None and not self.reader.is_alive():
            self.is_lost = True
        return self.is_lost or self.closed.is_set()


class TextStream(Iterator[Any]):
    """An answer as it is decoded, by a thread of its own that holds the lock of the model.

    The thread never waits for the reader, so a slow reader keeps nobody else from the model. It ends within one token
    after the stream is closed or dropped, or the thread that read from it last has ended.
    """

    def __init__(
        self, work: Callable[[_Feed], None], ends: Sequence[int], codec: TextCodec | None, stop: Sequence[str]
    ) -> None:
        """Prepare a stream; `stream` does."""
        self._work, self._ends, self._codec = work, frozenset(ends), codec
        self._feed = _Feed()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._detokenizer = Detokenizer(codec) if codec else None
        self._cutter = StopCutter(stop)

    def __next__(self) -> Any:
        """Wait for the next piece of text, or token."""
        while not self._ended:
            piece = self._step()
            if piece != "":
                return piece
        raise StopIteration

    @property
    def sources(self) -> tuple[float, ...] | None:
        """What `Answer.sources` is, once the stream has ended; it may be waited for. None before, or if not asked for.

        Raises:
            BaseException: If it could not be found out.
        """
        if not self._ended or self._thread is None or not self._feed.looks_for_sources:
            return None
        self._thread.join()
        while not self._feed.items.empty():  # of a stream that a stop text ended
            item = self._feed.items.get()
            if isinstance(item, BaseException):
                raise item
        return self._feed.sources

    def close(self) -> None:
        """End decoding within one token; the stream is over."""
        self._ended = True
        self._feed.closed.set()

    def __enter__(self) -> TextStream:
        """Give the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Nobody reads any more."""
        self._feed.closed.set()

    def _step(self) -> Any:
        """Take one item from the thread; return what it adds, perhaps nothing."""
        if self._feed.is_lost:
            self.close()
            raise UltraGistError("the thread that read this stream has ended, and decoding with it: ask again.")
        self._feed.reader = threading.current_thread()
        if self._thread is None:
            self._thread = threading.Thread(target=_run, args=(self._work, self._feed), name="ultragist-stream")
            self._thread.start()
        item = self._feed.items.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        return self._show(item)

    def _show(self, token: int | None) -> Any:
        if self._detokenizer is None:
            self._ended = token is None
            return "" if token is None else token
        if token is None:
            self._ended = True
            return self._cutter.push(self._detokenizer.flush()) + self._cutter.flush()
        shown = "" if token in self._ends else self._cutter.push(self._detokenizer.push(token))
        if self._cutter.stopped:
            self.close()
        return shown


def _run(work: Callable[[_Feed], None], feed: _Feed) -> None:
    """Decode in a thread; hand an error to the reader, and in any case an end."""
    try:
        work(feed)
    except BaseException as error:
        feed.items.put(error)
    finally:
        feed.items.put(None)
