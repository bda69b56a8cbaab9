"""From what a caller writes, texts, ids and memories in any order, to prompts of ids and memories.

Is        checks, tokenising, the lead token, and the count that decides whether a prompt fits.
Flow      memory, text -> [pieces] -> generate, stream, progressive.
Change    what may be a piece, which memories may stand in one prompt.
Not here  where pieces lie in the cache -> prompt.py; chat templates -> chat.py.
Holds     the lead token stands once at the head of a prompt, and nothing else is added to what the caller wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ContextOverflowError, InputError, MemoryMismatchError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import count_prompt
from ultragist_rag.memory.text import TextCodec

__all__ = ["Engine", "Piece", "as_batch", "check_fit", "to_prompt", "with_lead"]

Piece = str | Tensor | GistMemory
"""Untrusted text, token ids of shape (1, tokens) or (tokens,), or a memory."""

_TRAINED_IN = ("memory", "placement", "attention", "attend_previous", "projections", "rank")
"""Settings that the weights of gist parameters were trained for; the others may differ from call to call."""


@runtime_checkable
class Engine(Protocol):
    """What asking needs of the engine; `UltraGist` is one."""

    @property
    def attachment(self) -> Any:
        """The model with its gist modules and its lock."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, or None."""

    @property
    def config(self) -> GistConfig:
        """The settings."""

    @property
    def fingerprint(self) -> str:
        """Of the model; empty if unknown."""

    @property
    def lead_token(self) -> int | None:
        """Token in front of every independent document and prompt, or None."""

    @property
    def source_bias(self) -> float:
        """Of answers whose settings name none."""


def as_batch(pieces: Any) -> tuple[list[list[Piece]], bool]:
    """Tell one prompt from several.

    Args:
        pieces: One piece, a sequence of pieces, or a sequence of sequences of pieces.

    Returns:
        A list of prompts, and whether one prompt was meant rather than a batch.

    Raises:
        InputError: If there is nothing, or prompts and pieces are mixed.
    """
    if isinstance(pieces, Piece):
        return [[pieces]], True
    if not isinstance(pieces, Sequence) or not pieces:
        raise InputError(
            f"the prompt is {pieces!r}: give text, token ids and memories in a list, or a list of such lists."
        )
    nested = [isinstance(piece, list | tuple) for piece in pieces]
    if not any(nested):
        return [list(pieces)], True
    if not all(nested):
        raise InputError("pieces and lists of pieces are mixed: give either one prompt or a list of prompts.")
    return [list(prompt) for prompt in pieces], False


def to_prompt(engine: Engine, pieces: Sequence[Piece]) -> list[Tensor | GistMemory]:
    """Tokenise the texts of a prompt, check its memories and put the lead token at its head.

    Neighbouring texts are joined before they are tokenised. A prompt of ids alone stays as it is, without lead token.

    Args:
        engine: The engine that will read the prompt.
        pieces: Texts, ids and memories in reading order.

    Returns:
        Token ids of shape (tokens,) and memories.

    Raises:
        InputError: If a piece is of another kind, or there is text but no tokenizer, or ids are out of range.
        MemoryMismatchError: If a memory was made by another model or with other settings, or the memories need
            different lead tokens.
    """
    texts = any(isinstance(piece, str) for piece in pieces)
    if texts and engine.tokenizer is None:
        raise InputError("there is text but the engine has no tokenizer: give token ids, or load the engine with one.")
    prompt: list[Tensor | GistMemory] = []
    for piece in _join_texts(pieces):
        if isinstance(piece, str):
            ids = TextCodec.of(engine.tokenizer).encode(piece, first=not prompt)
        elif isinstance(piece, Tensor):
            ids = _row(piece, engine.attachment.model.config.vocab_size)
        else:
            prompt.append(piece)
            continue
        if len(ids):
            prompt.append(ids)
    memories = [piece for piece in prompt if isinstance(piece, GistMemory)]
    _check_made_here(engine, memories)
    lead_token = _common_lead(memories, engine.lead_token if texts else None)
    return with_lead(prompt, lead_token)


def with_lead(pieces: Sequence[Tensor | GistMemory], lead_token: int | None) -> list[Tensor | GistMemory]:
    """Put the lead token at the head of a prompt, unless it stands there already.

    A prompt that begins with a joint memory has its first token inside that memory.

    Args:
        pieces: Token ids of shape (tokens,) and memories.
        lead_token: The token, or None for none.

    Returns:
        The pieces, with one more in front where it is needed.
    """
    head = pieces[0] if pieces else None
    joint = isinstance(head, GistMemory) and head.joint
    there = isinstance(head, Tensor) and len(head) > 0 and int(head[0]) == lead_token
    if lead_token is None or joint or there:
        return list(pieces)
    return [torch.tensor([lead_token]), *pieces]


def check_fit(prompts: Sequence[Sequence[Tensor | GistMemory]], max_new_tokens: int, n_positions: int) -> None:
    """Refuse prompts that leave no room for the answer.

    Args:
        prompts: Prompts of ids and memories.
        max_new_tokens: Tokens that may be generated.
        n_positions: Positions that the model can use.

    Raises:
        ContextOverflowError: If slots, tokens and new tokens of a prompt are more than the positions.
    """
    for prompt in prompts:
        slots, tokens = count_prompt(prompt)
        total = slots + tokens + max_new_tokens
        if total > n_positions:
            raise ContextOverflowError(
                f"the prompt needs {total} positions ({slots} memory slots + {tokens} tokens + {max_new_tokens} new "
                f"tokens), but the model has {n_positions}. Use fewer documents, a higher ratio or fewer new tokens."
            )


def _join_texts(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if not isinstance(piece, Piece):
            raise InputError(f"a piece is {piece!r}, but must be text, token ids or a GistMemory.")
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def _row(ids: Tensor, vocab_size: int) -> Tensor:
    row = ids[0] if ids.dim() == 2 and ids.shape[0] == 1 else ids
    if row.dim() != 1 or row.dtype.is_floating_point or row.dtype == torch.bool:
        raise InputError(
            f"token ids have shape {tuple(ids.shape)}, {ids.dtype}: give whole numbers of shape (1, tokens)."
        )
    if len(row) and not 0 <= int(row.min()) <= int(row.max()) < vocab_size:
        raise InputError(
            f"token ids lie between {int(row.min())} and {int(row.max())}, but the model has {vocab_size}."
        )
    return row.long()


def _check_made_here(engine: Engine, memories: Sequence[GistMemory]) -> None:
    if not memories:
        return
    names = ("fingerprint", "tokenizer_fingerprint")
    known = {name: getattr(engine, name, "") for name in names}  # once: naming a model looks at all its parameters
    mine = engine.attachment.memory_shape
    for memory in memories:
        for name, ours in known.items():
            other = getattr(memory, name, "")
            if ours and other and ours != other:
                raise MemoryMismatchError(
                    f"a memory has {name} {other[:12]}, the engine {ours[:12]}: compress the text with this engine."
                )
        for name in _TRAINED_IN:
            setting, other = getattr(engine.config, name), getattr(memory.config, name)
            if setting != other:
                raise MemoryMismatchError(
                    f"a memory was made with {name} {other!r}, the engine has {setting!r}: compress the text with it."
                )
        theirs = (len(memory.keys), memory.keys[0].shape[1], memory.keys[0].shape[3])
        if mine != theirs:
            raise MemoryMismatchError(
                f"a memory has (layers, key heads, head width) {theirs}, the model has {mine}: compress the text with "
                "it."
            )


def _common_lead(memories: Sequence[GistMemory], default: int | None) -> int | None:
    leads = {memory.lead_token for memory in memories if not memory.joint}
    if len(leads) > 1:
        raise MemoryMismatchError(
            f"the memories need different lead tokens ({', '.join(map(str, leads))}) at the head of the prompt: "
            "compress all documents with one setting of lead_token."
        )
    return leads.pop() if leads else default
