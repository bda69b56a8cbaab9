"""Read token ids as one stream whose full windows are condensed, and score the tokens that follow or the stream itself.

Is        `StreamReader`: a context in, a memory and raw tokens out; log-likelihoods of what stands behind them.
Flow      layout, memory, engine, asking -> [streams] -> harness.
Paper     UltraGist, arXiv 2405.16635, section 3; arXiv 2412.17483, section 4, for what is lost at a window's boundary.
Change    what of a context is condensed, what is cut if it is too long.
Not here  texts, tokenizers and lm-eval -> harness.py; documents condensed one by one -> methods.py.
Holds     a context shorter than a window is read as the base model reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import ContextOverflowError
from ultragist_rag.evaluation.asking import log_likelihood
from ultragist_rag.layout.course import Course
from ultragist_rag.layout.slots import SlotTable
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import count_prompt, prompt_forward

__all__ = ["Likelihood", "Read", "StreamReader"]

Likelihood = tuple[float, bool]
"""Sum of the log-likelihoods of some tokens, in nats, and whether each of them is the likeliest."""


@dataclass(frozen=True, slots=True)
class Read:
    """A context as the model reads it.

    Attributes:
        pieces: A memory, if something was condensed, and tokens.
        slots: Cache slots that they take.
        tokens: Tokens that they stand for: fewer than there were if some were cut.
    """

    pieces: list[Tensor | GistMemory]
    slots: int
    tokens: int


class StreamReader:
    """Reads contexts with one model at one ratio, or as they are.

    Example:
        >>> from ultragist_rag.testing import tiny_engine
        >>> reader = StreamReader(tiny_engine(window=8, ratio=4), ratio=4)
        >>> reader.read(list(range(3, 30)), room=20).slots  # three windows in six gists, three tokens
        9
    """

    def __init__(
        self, engine: UltraGist, *, ratio: int | None = None, keep: int = 1, max_positions: int | None = None
    ) -> None:
        """Note the settings.

        Args:
            engine: The model.
            ratio: Raw tokens per gist; None condenses nothing.
            keep: Tokens at the end of a context that always stay raw, at least one.
            max_positions: Positions that a prompt may use; None for all of the model.
        """
        self.engine, self.ratio = engine, ratio
        self._keep, self._positions = keep, max_positions or engine.max_positions
        self._last: tuple[list[int], GistMemory] | None = None

    def read(self, ids: list[int], room: int) -> Read:
        """Lay out a context. What does not fit is cut on the left, by whole windows if the rest is condensed.

        Args:
            ids: The context, at least one token.
            room: Positions that it may take.

        Returns:
            What the model reads; it ends in a token.

        Raises:
            ContextOverflowError: If there is no room at all.
        """
        if room < 1:
            raise ContextOverflowError(
                f"what follows a context takes all of the {self._positions} positions: shorten it, or take a model "
                "with more."
            )
        while self.ratio is not None and len(ids) - self._keep >= self.engine.config.window:
            n_condensed = len(ids) - self._keep
            steps = list(self._walk(n_condensed))
            slots = steps[-1][2] + self._keep
            if slots <= room and max(positions for _, positions, _ in steps) <= self._positions:
                return Read([self._compress(ids[:n_condensed]), torch.tensor(ids[n_condensed:])], slots, len(ids))
            ids = ids[self.engine.config.n_stride :]
        ids = ids[-room:]
        return Read([torch.tensor(ids)], len(ids), len(ids))

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[Likelihood, Read]]:
        """Score continuations, which are not condensed, behind contexts, all in one batch.

        Args:
            pairs: Contexts and continuations, at least one token each.

        Returns:
            The likelihood of each continuation, and what was read in front of it.
        """
        reads = [self.read(context, self._positions - len(following) + 1) for context, following in pairs]
        prompts = [
            [*read.pieces, torch.tensor(following[:-1], dtype=torch.long)]
            for read, (_, following) in zip(reads, pairs, strict=True)
        ]
        ends = [count_prompt(prompt)[1] for prompt in prompts]
        wanted = [torch.arange(end - len(following), end) for end, (_, following) in zip(ends, pairs, strict=True)]
        with self.engine.attachment.lock:
            logits = prompt_forward(self.engine.attachment, prompts, wanted=wanted).logits
        rows = [_likelihood(one, following) for one, (_, following) in zip(logits, pairs, strict=True)]
        return list(zip(rows, reads, strict=True))

    @torch.no_grad()
    def score_stream(self, ids: list[int], n_scored: int) -> float:
        """Score the last tokens of a stream: every window is read behind the gists of those before it.

        Args:
            ids: The stream; its first token cannot be scored.
            n_scored: How many of the last tokens count.

        Returns:
            The sum of their log-likelihoods, in nats.
        """
        config, attachment = self.engine.config, self.engine.attachment
        unscored = len(ids) - 1 - n_scored
        memory: GistMemory | None = None
        total, start = 0.0, 0
        while start < len(ids) - 1:
            stop = min(start + (config.window if memory is None else config.n_stride), len(ids) - 1)
            if self.ratio is None:
                stop = len(ids) - 1
            window = torch.tensor(ids[start:stop])
            with attachment.lock:
                (logits,) = prompt_forward(attachment, [[window] if memory is None else [memory, window]]).logits
            skip = max(unscored - start, 0)
            if skip < len(window):
                total += _likelihood(logits[skip:], ids[start + skip + 1 : stop + 1])[0]
            if stop < len(ids) - 1:
                memory = self.engine.compress(window[None], memory=memory, ratio=self.ratio, joint=True, tail="raw")
            start = stop
        return total

    @cached_property
    def longest_stream(self) -> int:
        """Tokens that the model can read as one stream, the last one not scored yet."""
        if self.ratio is None:
            return self._positions
        longest = 0
        for tokens, positions, _ in self._walk(self._positions * self.engine.config.window):
            if positions > self._positions:
                break
            longest = tokens
        return longest or min(self._positions, self.engine.config.window)

    def _walk(self, n_tokens: int) -> Iterator[tuple[int, int, int]]:
        """After each window: tokens read, positions needed to read it, slots that remain."""
        course = Course(SlotTable.empty(), 0, 0, n_tokens, [self.ratio or 1])
        while not course.done:
            step = course.advance(self.engine.config, flush=False)
            yield course.end, int(step.positions.max()) + 1, len(course.table)

    def _compress(self, ids: list[int]) -> GistMemory:
        """Condense full windows. The same context with another continuation, as choices have it, comes for free."""
        if self._last is None or self._last[0] != ids:
            memory = self.engine.compress(torch.tensor(ids)[None], ratio=self.ratio, joint=True, tail="raw")
            self._last = (ids, memory)
        return self._last[1]


def _likelihood(logits: Tensor, ids: list[int]) -> Likelihood:
    target = torch.tensor(ids, device=logits.device)
    return log_likelihood(logits, target), bool((logits.argmax(-1) == target).all())
