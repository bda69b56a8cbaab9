"""Ask the model alone, without gists, how probable each token of a text is.

Is        one plain forward for each window; probabilities out.
Flow      modeling -> [surprisal] -> verbatim.py.
Paper     self-information as in Selective Context, arXiv 2310.06201; a window at a time is ours.
Change    what a token is predicted from.
Not here  which probability is low -> verbatim.py.
Holds     a token is predicted from its own window up to itself, so that any cut of a text gives the same.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.types import RaggedIds

__all__ = ["token_probabilities"]

_MAX_TOKENS, _MAX_ROWS = 8_192, 512
"""Tokens that run through the model at once, and rows of the vocabulary that are held at once."""


@torch.no_grad()
def token_probabilities(attachment: Attachment, ids: RaggedIds, lead_token: int | None) -> NDArray[np.float32]:
    """Compute the probability of each token behind the tokens of its window.

    Args:
        attachment: The model; its lock is held for some windows at a time.
        ids: Token ids, a window beginning with the first of them and after every `stride`.
        lead_token: Token in front of every window; None for none, then the first of a window counts as certain.

    Returns:
        Probabilities between 0 and 1.
    """
    stride = attachment.config.n_stride
    head = torch.tensor([] if lead_token is None else [lead_token], dtype=torch.long)
    windows = [torch.cat((head, window.cpu())) for window in ids.split(stride)] if len(ids) else []
    size = max(1, _MAX_TOKENS // stride)
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(windows), size):
        group = windows[start : start + size]
        rows = torch.nn.utils.rnn.pad_sequence(group, batch_first=True).to(attachment.device)
        with attachment.lock:
            hidden = attachment.decoder(input_ids=rows, use_cache=False).last_hidden_state[:, :-1]
            pairs = zip(hidden.flatten(0, 1).split(_MAX_ROWS), rows[:, 1:].flatten().split(_MAX_ROWS), strict=True)
            probable = torch.cat([_probable(attachment, *pair) for pair in pairs]).view(len(group), -1).cpu().numpy()
        certain = np.ones(1 - len(head), np.float32)
        for row, window in zip(probable, group, strict=True):
            found += [certain, row[: len(window) - 1]]
    return np.concatenate(found)


def _probable(attachment: Attachment, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = attachment.model.lm_head(hidden).float()
    return logits.softmax(-1).gather(1, tokens.to(logits.device)[:, None])[:, 0]
