"""Ask the model what a sample wants: a text, the likeliest choice, or the probability of a text; and time it.

Is        prompts of head, shown context and tail, through the same code that answers everywhere else.
Flow      methods -> [asking] -> runner.
Change    how a prompt is laid out, what is timed.
Not here  what stands in the place of the context -> methods.py.
Holds     all methods are asked by this code, so they differ in the context alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Piece, check_fit, to_prompt, with_lead
from ultragist_rag.memory.prompt import count_prompt, prompt_forward
from ultragist_rag.memory.text import TextCodec

__all__ = ["Asked", "ask", "decoding_of", "log_likelihood", "log_likelihoods", "now", "prompt_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of a prompt.

    Attributes:
        prediction: Text of the answer or of the choice; empty for `perplexity`.
        scores: Only for `perplexity`: `nll`, in nats per token, and `tokens`.
        first_token: Seconds from the question to the first token, or to the likelihoods.
        total: Seconds to the end.
    """

    prediction: str
    scores: Scores
    first_token: float
    total: float


def prompt_of(sample: Sample, shown: Sequence[Piece]) -> list[Piece]:
    """Lay a prompt out: head, context, tail; a joint memory has the head inside."""
    joint = any(isinstance(piece, GistMemory) and piece.joint for piece in shown)
    pieces: list[Piece] = [*shown] if joint or not sample.head else [sample.head, *shown]
    return [*pieces, sample.tail] if sample.tail else pieces


def decoding_of(task: Task, source_bias: float, **settings: Any) -> Decoding:
    """How answers of a task are decoded; settings are those of `Decoding`."""
    return Decoding.of({"max_new_tokens": task.n_new, "stop": task.stop, "source_bias": source_bias, **settings})


def ask(engine: UltraGist, task: Task, sample: Sample, shown: Sequence[Piece], source_bias: float = 0.0) -> Asked:
    """Ask one sample.

    Args:
        engine: The model.
        task: Says how it is asked.
        sample: What is asked.
        shown: The context as a method shows it.
        source_bias: See `Decoding`; for tasks that generate.

    Returns:
        The prediction, and how long it took.

    Raises:
        ContextOverflowError: If prompt and answer need more positions than there are.
        InputError: If the task is about choices and the sample has none.
    """
    pieces = prompt_of(sample, shown)
    started = now(engine)
    if task.kind == "generate":
        clock = _Clock(engine)
        ((got,),) = answer(engine, [pieces], decoding_of(task, source_bias, stopping_criteria=[clock]))
        return Asked(got.text.strip(), {}, (clock.first or started) - started, now(engine) - started)
    if not sample.choices:
        raise InputError(f"sample {sample.id!r} of {task.name} has no choices, but is to be asked by {task.kind!r}.")
    rows = log_likelihoods(engine, pieces, sample.choices, skip_first=task.kind == "perplexity")
    took = now(engine) - started
    if task.kind == "perplexity":
        total, n_tokens = rows[0]
        return Asked("", {"nll": -total / n_tokens, "tokens": float(n_tokens)}, took, took)
    means = [total / n_tokens for total, n_tokens in rows]
    return Asked(sample.choices[means.index(max(means))], {}, took, took)


def now(engine: UltraGist) -> float:
    """Seconds, once the device has done what it was given."""
    device = engine.model.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def log_likelihoods(
    engine: UltraGist, pieces: Sequence[Piece], texts: Sequence[str], *, skip_first: bool = False
) -> list[tuple[float, int]]:
    """Log-likelihood of each of some texts behind a prompt.

    Args:
        engine: The model.
        pieces: The prompt.
        texts: What may follow it; each is tokenised by itself.
        skip_first: Leave the first token of each text out, so that the prompt may end in a memory, which predicts
            nothing.

    Returns:
        For each text the sum in nats, and the number of tokens that it is over.

    Raises:
        InputError: If a text has no token that counts.
        ContextOverflowError: If prompt and text need more positions than there are.
    """
    codec = TextCodec.of(engine.tokenizer)
    prompt = with_lead(to_prompt(engine, pieces), engine.lead_token)
    rows = [codec.encode(text, first=not prompt) for text in texts]
    first = int(skip_first)
    short = [text for text, ids in zip(texts, rows, strict=True) if len(ids) <= first]
    if short:
        raise InputError(f"the text {short[0]!r:.80} has too few tokens to have a probability: give a longer one.")
    prompts = [[*prompt, ids] for ids in rows]
    check_fit(prompts, 0, engine.max_positions)
    counts = [count_prompt(one)[1] for one in prompts]
    wanted = [torch.arange(n - len(ids) + first, n) - 1 for n, ids in zip(counts, rows, strict=True)]
    with engine.attachment.lock:
        logits = prompt_forward(engine.attachment, prompts, wanted=wanted).logits
    return [(log_likelihood(row, ids[first:]), len(ids) - first) for row, ids in zip(logits, rows, strict=True)]


def log_likelihood(logits: Tensor, ids: Tensor) -> float:
    """Sum the log-probabilities of tokens, in nats.

    Args:
        logits: That predict them, shape (tokens, vocab).
        ids: The tokens, shape (tokens,).

    Returns:
        The sum.
    """
    of_each = logits.float().log_softmax(-1).gather(1, ids.to(logits.device)[:, None])
    return float(of_each.double().sum())


class _Clock(StoppingCriteria):
    """Notes when the first token is there; stops nothing."""

    def __init__(self, engine: UltraGist) -> None:
        self._engine = engine
        self.first: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        del scores, kwargs
        if self.first is None:
            self.first = now(self._engine)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
