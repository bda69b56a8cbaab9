"""An answer of a session as it is decoded.

Is        `SessionStream`, an iterator of texts that tells the session what was said when it is over.
Flow      engine -> [asking] -> session.
Change    what counts as said when an answer is not read to its end.
Not here  decoding -> memory/stream.py.
Holds     what has been given out is what is kept; after an error nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType

from ultragist_rag.memory.stream import TextStream

__all__ = ["SessionStream"]


class SessionStream(Iterator[str]):
    """Texts of an answer; also a context manager.

    Read it to its end or close it: then question and answer, as far as it was given out, are part of the session. One
    that is dropped, or of which nothing was read, leaves the session as it was.
    """

    def __init__(self, stream: TextStream, keep: Callable[[str], object]) -> None:
        """Read a stream; `GistSession.ask` makes these.

        Args:
            stream: What the engine gives.
            keep: Called once with what was said.
        """
        self._stream = stream
        self._keep = keep
        self._said: list[str] = []
        self._is_over = False

    def __next__(self) -> str:
        """Wait for the next piece of text."""
        if self._is_over:
            raise StopIteration
        try:
            piece = str(next(self._stream))
        except StopIteration:
            self._end()
            raise
        except Exception:  # not Ctrl-C: who catches that closes the stream, and what was said is kept
            self._is_over = True
            raise
        self._said.append(piece)
        return piece

    def close(self) -> None:
        """End the answer within one token; what was said so far is kept."""
        self._stream.close()
        if not self._is_over and self._said:
            self._end()
        self._is_over = True

    def __enter__(self) -> SessionStream:
        """Give the stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _end(self) -> None:
        self._is_over = True
        self._keep("".join(self._said))
