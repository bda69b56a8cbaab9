"""Suite `serving`: questions that come at random, through the batching queue, against one at a time and full text.

Is        throughput, and percentiles of the time to the first token and to the end, by the rate of arrivals.
Flow      suite -> [serving] -> suites.
Change    the load: questions, documents of each, rates.
Holds     everything that is compared answers the same questions, which come at the same moments; a request's time
          begins when it was to come, whatever held it up.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.record import Row, Setting, Spread
from benchmarks.suite import Bench, Plot, Suite
from ultragist_rag import UltraGist
from ultragist_rag.batching import BatchQueue
from ultragist_rag.requests import turn

__all__ = ["SUITE"]

_QUEUE, _ALONE, _TEXT = "memories, queue", "memories, one at a time", "full text, queue"
_N_CHUNKS, _N_USED, _QUESTION = 16, 4, 24
"""Chunks of the corpus, chunks behind a question, and tokens of a question."""

_PERCENTILES = (50, 95, 99)
_MOST_ROUNDS = 20

Ask = Callable[[Any], float]
"""Answers a prompt; returns when its first token was there."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A point of the grid: a rate of arrivals in multiples of what one request at a time can do, and the baseline."""

    rate: float
    n_questions: int
    new_tokens: int
    baseline: str = _ALONE

    @property
    def settings(self) -> dict[str, Setting]:
        return {"rate": self.rate, "questions": self.n_questions, "new tokens": self.new_tokens}


@dataclass(frozen=True, slots=True)
class _Load:
    """What was served: seconds to the first token and to the end of each answer, and from the first arrival on."""

    first: list[float]
    total: list[float]
    seconds: float

    def numbers(self) -> dict[str, float]:
        """Sum up, by name."""
        found = {"throughput": len(self.total) / self.seconds}
        for name, times in (("first token", self.first), ("total", self.total)):
            ordered = sorted(times)
            for percent in _PERCENTILES:
                found[f"{name}, p{percent}"] = ordered[math.ceil(percent / 100 * len(ordered)) - 1]
        return found


class _FirstToken(StoppingCriteria):
    """Notes when the first token is there; stops nothing."""

    at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        if not self.at:
            int(input_ids[0, -1])  # waits for the device
            self.at = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def measure(bench: Bench) -> Iterator[Row]:
    """Measure every cell.

    Args:
        bench: What to measure with.

    Yields:
        Throughput and percentiles.
    """
    memories, texts = _prompts(bench, bench.grid(minimal=40, quick=512, full=512))
    cells = bench.grid(
        minimal=[_Cell(4.0, 4, 2), _Cell(1.0, 2, 2, _TEXT)],
        quick=[_Cell(1.0, 64, 16), _Cell(4.0, 64, 16), _Cell(1.0, 16, 16, _TEXT)],
        full=[*(_Cell(rate, 64, 24) for rate in (0.5, 1.0, 2.0, 4.0)), _Cell(1.0, 64, 24, _TEXT)],
    )
    with bench.engine.batching(max_waiting=len(memories)) as queue:
        for cell in bench.progress(cells):
            together = partial(_through, queue, cell.new_tokens)
            alone = partial(_one_at_a_time, bench.engine, cell.new_tokens)
            variants: dict[str, tuple[Ask, list[Any]]] = {
                _QUEUE: (together, memories),
                cell.baseline: (alone, memories) if cell.baseline == _ALONE else (together, texts),
            }
            yield from _rows(bench, cell, variants, len(cells), _seconds_alone(alone, memories[0]))


def _prompts(bench: Bench, n_tokens: int) -> tuple[list[Any], list[Any]]:
    """Make questions over chunks of a corpus that all share: with memories, and with the same chunks as text."""
    n = bench.grid(minimal=4, quick=64, full=64)
    chunks, questions = bench.ids(_N_CHUNKS, n_tokens), bench.ids(n, _QUESTION, seed=1)
    with torch.inference_mode():
        memories = [bench.engine.compress(chunk[None]) for chunk in chunks]
    drawn = random.Random(0)
    used = [drawn.sample(range(_N_CHUNKS), _N_USED) for _ in range(n)]
    short = [[*(memories[one] for one in mine), ask[None]] for mine, ask in zip(used, questions, strict=True)]
    full = [[torch.cat([*(chunks[one] for one in mine), ask])[None]] for mine, ask in zip(used, questions, strict=True)]
    return short, full


def _rows(
    bench: Bench, cell: _Cell, variants: dict[str, tuple[Ask, list[Any]]], n_cells: int, seconds_alone: float
) -> Iterator[Row]:
    gaps = random.Random(1)
    arrivals = list(accumulate(gaps.expovariate(cell.rate / seconds_alone) for _ in range(cell.n_questions)))
    for ask, prompts in variants.values():
        serve(ask, prompts[:2], [0.0, 0.0])
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    begin, n = time.perf_counter(), 0
    while n == 0 or (n < (bench.repeats or _MOST_ROUNDS) and time.perf_counter() - begin < bench.seconds / n_cells):
        for name in list(variants)[:: 1 if n % 2 == 0 else -1]:
            ask, prompts = variants[name]
            rounds[name].append(serve(ask, prompts[: cell.n_questions], arrivals).numbers())
        n += 1
    for name, found in rounds.items():
        for what in found[0]:
            yield _row(cell, name, what, rounds)


def _row(cell: _Cell, name: str, what: str, rounds: dict[str, list[dict[str, float]]]) -> Row:
    is_rate = what == "throughput"
    mine, other = ([one[what] for one in rounds[side]] for side in (name, cell.baseline))
    ratios = [a / b if is_rate else b / a for a, b in zip(mine, other, strict=True)]
    is_ours = name == _QUEUE
    return Row(
        name=name,
        settings={"of": what, **cell.settings},
        unit="answers/s" if is_rate else "s",
        better="higher" if is_rate else "lower",
        value=Spread.of(mine),
        baseline=cell.baseline if is_ours else "",
        ratio=Spread.of(ratios) if is_ours else None,
    )


def serve(ask: Ask, prompts: Sequence[Any], arrivals: Sequence[float]) -> _Load:
    """Ask prompts when they are to come, each from a thread of its own, and wait for all answers.

    Args:
        ask: What answers.
        prompts: The prompts.
        arrivals: When each comes, in seconds from now.

    Returns:
        How long it took.
    """
    begin = time.perf_counter()

    def come(prompt: Any, arrival: float) -> tuple[float, float]:
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        first = ask(prompt) - begin
        return first - arrival, time.perf_counter() - begin - arrival

    with ThreadPoolExecutor(len(prompts)) as clients:
        times = list(clients.map(come, prompts, arrivals))
    seconds = time.perf_counter() - begin - arrivals[0]
    return _Load([first for first, _ in times], [total for _, total in times], seconds)


def _through(queue: BatchQueue, new_tokens: int, prompt: Any) -> float:
    tokens: list[float] = []
    queue.answer(
        prompt, max_new_tokens=new_tokens, eos_token_id=[], on_token=lambda _: tokens.append(time.perf_counter())
    )
    return tokens[0]


def _one_at_a_time(engine: UltraGist, new_tokens: int, prompt: Any) -> float:
    watch = _FirstToken()
    with turn(engine):
        engine.answer(
            prompt, max_new_tokens=new_tokens, eos_token_id=[], stopping_criteria=StoppingCriteriaList([watch])
        )
    return watch.at


def _seconds_alone(ask: Ask, prompt: Any) -> float:
    """Measure a request that nobody else disturbs: one over it is what one at a time can do."""
    loads = [serve(ask, [prompt], [0.0]) for _ in range(4)]
    return median(load.total[0] for load in loads[1:])


SUITE = Suite(
    name="serving",
    title="Serving",
    order=4,
    about=(
        f"Questions of {_QUESTION} tokens, each over {_N_USED} of {_N_CHUNKS} stored chunks of 512 tokens (ratio 8, "
        "memories on the device), come at random: gaps are exponential, drawn once, the same for all. The rate is in "
        "multiples of what one request at a time can do, as measured on an idle engine just before. The queue "
        "(`UltraGist.batching`) decodes up to 16 requests side by side; one at a time, they wait in line for "
        "`UltraGist.answer`, first come, first served. Full text gives the queue the same questions behind the own "
        "tokens of the chunks. Answers have a fixed length. Times begin when a question was to come, waiting included; "
        "percentiles are over the questions of a round, throughput is answers over the time from the first arrival to "
        "the last answer: with arrivals below the capacity, it is their rate. Above the capacity of a way to serve, as "
        "full text soon is, its times grow with the number of questions: only its throughput says how fast it is."
    ),
    measure=measure,
    plots=(
        Plot(name="throughput", x="rate", unit="answers/s", where={"of": "throughput", "questions": 64}),
        Plot(name="first-token", x="rate", unit="s", where={"of": "first token, p95", "questions": 64}),
        Plot(name="total", x="rate", unit="s", where={"of": "total, p95", "questions": 64}),
    ),
)
