"""What the suite `failures` measures besides predictions: perplexity by position and the reconstruction probe.

Is        two functions of engine and settings of a run, with texts of our own making.
Flow      tasks.failures, position, probe -> [measure] -> extras.
Change    how many texts are read, how long the probe is trained.
Not here  the measurements -> position.py, probe.py.
Holds     equal settings give equal lines.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.evaluation.failures.position import position_perplexity
from ultragist_rag.evaluation.failures.probe import probe
from ultragist_rag.evaluation.tasks.failures import pages_of_length
from ultragist_rag.memory.text import TextCodec

__all__ = ["invented_texts", "measure_position", "measure_probe"]

_log = logging.getLogger(__name__)

_PROBE_TOKENS = 1024
_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class _Size:
    """Texts whose perplexity is measured, texts of the probe, and its training steps."""

    position: int
    probe: int
    steps: int


_THOROUGH, _QUICK = _Size(8, 16, 100), _Size(2, 6, 25)
_QUICK_BELOW = 50
"""Samples of a task below which a run is a quick one."""


def measure_position(
    engine: UltraGist, *, ratios: Sequence[int], limit: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure perplexity by position in the window, on texts of our own making.

    Args:
        engine: The model; it needs a tokenizer.
        ratios: Raw tokens per gist.
        limit: Samples of each task of the run; below 50 fewer texts are read.
        seed: Of the texts.

    Returns:
        Lines of `failures/position`; none, with a warning, if the model has not positions enough for two windows.
    """
    window = engine.config.window
    n_windows = min(_WINDOWS, max(2, (engine.max_positions - 2) // window))
    texts = invented_texts(engine, _size(limit).position, n_windows * window + 1, seed)
    return _or_nothing(lambda: position_perplexity(engine, texts, ratios))


def measure_probe(
    engine: UltraGist, *, ratios: Sequence[int], limit: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure how many tokens can be read back from gists, on texts of our own making, at every ratio.

    Args:
        engine: The model; it needs a tokenizer.
        ratios: Raw tokens per gist.
        limit: Samples of each task of the run; below 50 fewer texts are read, and training is shorter.
        seed: Of texts and decoder.

    Returns:
        Lines of `failures/probe`; a ratio for which the positions do not reach is left out, with a warning.
    """
    size = _size(limit)
    texts = invented_texts(engine, size.probe, max(engine.config.window, _PROBE_TOKENS), seed + 1)
    jobs = [partial(probe, engine, texts, ratio, steps=size.steps, seed=seed) for ratio in ratios]
    return [row for job in jobs for row in _or_nothing(job)]


def _size(limit: int | None) -> _Size:
    return _QUICK if limit is not None and limit < _QUICK_BELOW else _THOROUGH


def _or_nothing(job: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return job()
    except (ContextOverflowError, InputError) as error:
        _log.warning("left out: %s", error)
        return []


def invented_texts(engine: UltraGist, count: int, n_tokens: int, seed: int) -> list[str]:
    """Write texts about places that do not exist.

    Args:
        engine: Its tokenizer counts.
        count: How many texts.
        n_tokens: Tokens that each has at least.
        seed: Of the draws.

    Returns:
        The texts.
    """
    codec = TextCodec.of(engine.tokenizer)
    rng = random.Random(seed)

    def write() -> str:
        pages = pages_of_length(rng, n_tokens, lambda text: len(codec.encode(text)))
        return "\n\n".join(one.text for one in pages)

    return [write() for _ in range(count)]
