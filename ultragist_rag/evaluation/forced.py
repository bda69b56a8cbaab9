"""Score answers under teacher forcing: which of their tokens a model ranks first behind text, memories or nothing.

Is        rows of token ids in, counts for each row out; no decoding, so that many answers cost one forward.
Flow      training.batches, memory -> [forced] -> training.ablation.
Change    what is counted of a row.
Not here  decoded answers -> answering.py; what counts mean over many rows -> ablation_page.py.
Holds     an answer is right exactly if greedy decoding behind the same tokens would write it, end token included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.training.batches import Row
from ultragist_rag.training.objectives import labelled

__all__ = ["Forced", "Method", "score_rows"]

Method = Literal["full", "closed", "gist"]
_BATCH = 8


@dataclass(frozen=True, slots=True)
class Forced:
    """Counts of one row.

    Attributes:
        tokens: Tokens of its answers.
        right_tokens: Those that were ranked first.
        loss: Sum of their negative log likelihoods, in nats.
        answers: Its answers.
        right: Those of which every token was ranked first.
    """

    tokens: int
    right_tokens: int
    loss: float
    answers: int
    right: int


def score_rows(
    attachment: Attachment,
    rows: Sequence[Row],
    lead: int | None,
    method: Method,
    gist: tuple[int, int] | None = None,
) -> list[Forced]:
    """Score the answers of rows, in order.

    Args:
        attachment: The model; the caller holds its lock.
        rows: Prompts with questions; each document is compressed on its own.
        lead: Lead token, or None.
        method: `full` reads documents as text, `gist` from memories, `closed` not at all.
        gist: For `gist`, raw tokens per gist and of a window; None for those of the config.

    Returns:
        One for each row.
    """
    found: list[Forced] = []
    with torch.no_grad():
        for start in range(0, len(rows), _BATCH):
            found += _batch(attachment, rows[start : start + _BATCH], lead, method, gist)
    return found


def _batch(
    attachment: Attachment, rows: Sequence[Row], lead: int | None, method: Method, gist: tuple[int, int] | None
) -> Iterator[Forced]:
    memories: Iterator[GistMemory] = iter(())
    if method == "gist":
        documents = [torch.tensor(ids) for row in rows for ids in row.documents]
        ratio, window = gist or (attachment.config.ratio, None)
        memories = iter(compress_ids(attachment, documents, ratio=ratio, lead_token=lead, window=window))
    prompts, wanted = [], []
    for row in rows:
        pieces: list[Tensor | GistMemory] = [] if lead is None else [torch.tensor([lead])]
        if method != "closed":
            pieces += [torch.tensor(row.head)] if row.head else []
            for ids, separator in zip(row.documents, row.separators, strict=True):
                pieces += [next(memories) if method == "gist" else torch.tensor(ids), torch.tensor(separator)]
        before = sum(len(piece) for piece in pieces if isinstance(piece, Tensor))
        wanted.append(before + labelled(row) - 1)
        prompts.append([*pieces, torch.tensor(row.turns)])
    state = prompt_forward(attachment, prompts, wanted=wanted)
    return (_counts(row, logits) for row, logits in zip(rows, state.logits, strict=True))


def _counts(row: Row, logits: Tensor) -> Forced:
    places = labelled(row)
    targets = torch.tensor(row.turns, device=logits.device)[places.to(logits.device)]
    loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
    right = (logits.argmax(-1) == targets).tolist()
    # An answer is a run of labelled tokens.
    firsts = [i for i, place in enumerate(places.tolist()) if i == 0 or place != int(places[i - 1]) + 1]
    ends = [*firsts[1:], len(right)]
    whole = sum(all(right[first:end]) for first, end in zip(firsts, ends, strict=True))
    return Forced(len(right), sum(right), round(float(loss), 4), len(firsts), whole)
