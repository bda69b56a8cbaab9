"""What transformers' generate starts from: a cache, the tokens behind it, and what its first forward sees.

Is        `begin`, the way from prompts of ids and memories to the arguments of generate.
Flow      prompt_layout, assembly, assembled, prompt -> [beginning] -> generate.
Change    how much of a prompt generate reads itself.
Not here  the call of generate and its settings -> generate.py.
Holds     the first scores are those behind the last token of each prompt, whichever way they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, StaticCache

from ultragist_rag.errors import InputError
from ultragist_rag.fast import is_fast
from ultragist_rag.memory.assembled import Assembled
from ultragist_rag.memory.assembly import rotated_slots
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import Prompt, prompt_forward, takes_any_mask
from ultragist_rag.memory.prompt_layout import NOWHERE, Layout, as_mask, lay_out, visible

if TYPE_CHECKING:
    from ultragist_rag.modeling.attach import Attachment

__all__ = ["Beginning", "begin"]


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """Where decoding begins.

    Attributes:
        cache: Keys and values that are there.
        ids: A token id for each column of cache and unread tokens, shape (batch, columns).
        filled: Which columns are real, shape as `ids`.
        positions: Of the unread tokens, shape (batch, unread).
        mask: What the unread tokens see, as the attention function takes it; None for everything in front of them.
    """

    cache: DynamicCache | StaticCache
    ids: Tensor
    filled: Tensor
    positions: Tensor
    mask: Tensor | None

    def copied(self, rows: int) -> Beginning:
        """Repeat each prompt; the cache is another matter, since beams need it repeated and the rest not."""
        parts = (self.ids, self.filled, self.positions)
        ids, filled, positions = (part.repeat_interleave(rows, dim=0) for part in parts)
        return Beginning(self.cache, ids, filled, positions, self.mask)

    @contextmanager
    def masked(self, decoder: Any) -> Iterator[None]:
        """Give the first forward inside the block its mask, which generate cannot hand on."""
        mask = self.mask
        if mask is None:
            yield
            return

        def once(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            handle.remove()
            copies = len(kwargs["position_ids"]) // len(mask)
            return args, {**kwargs, "attention_mask": mask.repeat_interleave(copies, dim=0)}

        handle = decoder.register_forward_pre_hook(once, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def begin(
    attachment: Attachment,
    prompts: Sequence[Prompt],
    *,
    assembled: Assembled | None = None,
    static: StaticCache | None = None,
) -> Beginning:
    """Prepare prompts for generate.

    Memories are put into the cache. Where a mask of any shape can be had, all tokens are left for the first forward of
    generate; otherwise all but the last one of each prompt are read here.

    Args:
        attachment: The model; the caller holds its lock.
        prompts: Prompts of ids and memories that end in a token.
        assembled: What was assembled for recent prompts; None for nothing.
        static: Cache of fixed size to fill; None for one that grows.

    Returns:
        What generate starts from.

    Raises:
        InputError: If a prompt ends in a memory, or `static` is given where the prompt cannot be read in one forward.
    """
    heads, tokens = zip(*map(_split_last, prompts), strict=True)
    recurrent = any(isinstance(p, GistMemory) and p.config.memory == "recurrent" for prompt in prompts for p in prompt)
    in_one = takes_any_mask(attachment.model) and not recurrent
    if static is not None and not in_one:
        raise InputError(
            "cache_implementation is 'static', which needs memories of keys and values and attn_implementation 'sdpa' "
            "or 'eager'. Use 'dynamic'."
        )
    if in_one and (is_fast("one-forward") or static is not None):
        return _all_unread(attachment, [list(prompt) for prompt in prompts], assembled or Assembled(), static)
    state = prompt_forward(attachment, heads, wanted="none")
    last = torch.stack(tokens).to(state.ids.device)  # (batch, 1)
    filled = torch.cat((state.filled, torch.ones_like(last, dtype=torch.bool)), dim=1)
    positions = torch.tensor(state.lengths, device=last.device)[:, None]
    return Beginning(state.cache, _with_ids(torch.cat((state.ids, last), dim=1)), filled, positions, None)


def _all_unread(
    attachment: Attachment,
    prompts: list[list[Tensor | GistMemory]],
    assembled: Assembled,
    static: StaticCache | None,
) -> Beginning:
    model, cache = attachment.model, DynamicCache() if static is None else static
    layout = lay_out(prompts, attachment.device)
    slots = assembled.slots(layout, model.dtype, lambda: rotated_slots(model, layout))
    for number, (keys, values) in enumerate(slots):
        cache.update(keys, values, number)
    ids = torch.cat((torch.full_like(layout.slot_positions, NOWHERE), layout.ids), dim=1)
    filled = torch.cat((layout.slot_positions, layout.positions), dim=1) != NOWHERE
    return Beginning(cache, _with_ids(ids), filled, layout.positions.clamp(min=0), _mask(model, layout, static))


def _mask(model: Any, layout: Layout, static: StaticCache | None) -> Tensor | None:
    """Make the mask of all tokens; one prompt of text alone needs none, and may be too long for one."""
    if len(layout.ids) == 1 and not layout.memories:
        return None
    seen = visible(layout)
    if static is not None:  # its columns behind the prompt are seen by no token of it
        layer: Any = static.layers[0]
        seen = pad(seen, (0, layer.max_cache_len - seen.shape[3]))
    return as_mask(model, seen)


def _with_ids(ids: Tensor) -> Tensor:
    """Give slots and padding some id, since logits processors look at ids: one that stands in the prompt anyway."""
    return torch.where(ids < 0, ids[:, -1:], ids)


def _split_last(prompt: Prompt) -> tuple[list[Tensor | GistMemory], Tensor]:
    """Take the last token off a prompt."""
    *pieces, ids = prompt
    if not isinstance(ids, Tensor) or not len(ids):
        raise InputError("a prompt ends in a memory: put text behind it, a question for example.")
    return [*pieces, ids[:-1]], ids[-1:]
