"""From what a caller gives as documents, texts or ids, to rows of token ids.

Is        checks, tokenising, and the rule that a lead token is not part of a document.
Flow      text -> [documents] -> engine.
Change    what may be a document.
Not here  prompts -> pieces.py; the windows -> compress.py.
Holds     text never becomes a special token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.modeling.lead import prepended_token
from ultragist_rag.types import TokenIds

__all__ = ["ids_of_text", "ids_of_tensor"]


def ids_of_text(text: str, tokenizer: Any, *, joint: bool, first: bool) -> TokenIds:
    """Tokenise a document.

    Args:
        text: Any text; it is untrusted.
        tokenizer: The tokenizer, or None.
        joint: Whether the token that the tokenizer prepends belongs into the stream.
        first: Whether the sequence begins here.

    Returns:
        Token ids.

    Raises:
        InputError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise InputError("there is text but the engine has no tokenizer: give token ids, or load one.")
    ids = TextCodec.of(tokenizer).encode(text, first=first)
    head = prepended_token(tokenizer) if joint and first else None
    return ids if head is None else torch.cat((torch.tensor([head]), ids))


def ids_of_tensor(document: Tensor, vocab_size: int, lead_token: int | None) -> TokenIds:
    """Check token ids and take the lead token off their head.

    Args:
        document: Shape (1, tokens) or (tokens,).
        vocab_size: Tokens that the model knows.
        lead_token: Token that stands in front anyway; None for none.

    Returns:
        Token ids.

    Raises:
        InputError: If they are not whole numbers of such a shape, or out of range.
    """
    ids = document[0] if document.dim() == 2 and document.shape[0] == 1 else document
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        shape = tuple(document.shape)
        raise InputError(f"token ids have shape {shape}, {document.dtype}: give whole numbers of shape (1, tokens).")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        low, high = int(ids.min()), int(ids.max())
        raise InputError(f"token ids lie between {low} and {high}, but the model has {vocab_size} tokens.")
    return (ids[1:] if len(ids) and int(ids[0]) == lead_token else ids).long()
