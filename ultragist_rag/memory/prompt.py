"""Run the model over the tokens of prompts that also hold memories.

Is        the way from `[ids, memory, ids, ...]` to logits and to a filled Hugging Face cache, for a batch of prompts.
Flow      memory, modeling -> [prompt] -> generate, training.
Paper     UltraGist, arXiv 2405.16635, section 3: positions are places in the memory; the single pass is ours.
Change    how a forward is made.
Not here  columns and masks -> prompt_layout.py; texts and lead tokens -> pieces.py; decoding -> generate.py.
Holds     a token sees exactly the slots and tokens in front of it, in whatever order and batch they are laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ultragist_rag.errors import InputError
from ultragist_rag.memory.assembly import rotated_slots
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt_layout import NOWHERE, SOFT, Layout, as_mask, lay_out, pad_left, visible
from ultragist_rag.modeling.rope import decoder_of
from ultragist_rag.modeling.window import Window

if TYPE_CHECKING:
    from ultragist_rag.modeling.attach import Attachment

__all__ = ["Prompt", "PromptState", "Wanted", "count_prompt", "prompt_forward", "takes_any_mask"]

Prompt = Sequence[Tensor | GistMemory]
Wanted = Literal["all", "last", "none"] | Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """What is known after the tokens of a batch of prompts have been read.

    Attributes:
        logits: One tensor of shape (wanted tokens, vocab) per prompt, in reading order; empty if none were wanted.
        cache: Rotated keys and values of all slots and tokens, with `columns` columns; empty after a pass with gradient
            checkpointing, which keeps none.
        ids: Token id of each column, shape (batch, columns); -1 for memory slots and padding.
        filled: Which columns are real, shape (batch, columns).
        lengths: Slots and tokens of each prompt: the position of the next token.
    """

    logits: tuple[Tensor, ...]
    cache: DynamicCache
    ids: Tensor
    filled: Tensor
    lengths: tuple[int, ...]


def prompt_forward(
    attachment: Attachment, prompts: Sequence[Prompt], *, wanted: Wanted = "all", sequential: bool | None = None
) -> PromptState:
    """Read a batch of prompts, each a sequence of token ids and memories in any order.

    The position of a slot or token is its place in the prompt. Keys of memories are rotated once to their places and
    lie in front in the cache; the tokens of all pieces follow in one pass, with their true positions and a mask that
    lets each see what is in front of it. Prompts are padded with columns that nobody sees. Gradients flow through
    memories and model. Attention functions that take no such mask (FlashAttention) read piece by piece instead, with
    the same result. The caller holds the lock of the attachment.

    Source: assembly is ours; exact because attention does not depend on the order of keys once they are rotated.

    Args:
        attachment: The model with its gist parameters.
        prompts: Pieces of each prompt: token ids of shape (tokens,), without a batch axis, or memories.
        wanted: Tokens whose logits are computed: all, the last one of each prompt, none, or, for each prompt, indices
            of shape (n,) into its tokens, memories not counted.
        sequential: Whether to read piece by piece; None decides by the attention function of the model.

    Returns:
        Logits of the wanted tokens, and the cache from which decoding can go on.

    Raises:
        InputError: If there is no prompt, or a piece is neither ids of shape (tokens,) nor a memory.
    """
    if not prompts:
        raise InputError("there is no prompt: give at least one.")
    checked = [_checked(prompt) for prompt in prompts]
    model = attachment.model
    if sequential is None:
        sequential = not takes_any_mask(model)
    read = _read_in_sequence if sequential else _read_in_one_pass
    hidden, state = read(model, checked)
    return PromptState(logits=_select_logits(model, hidden, wanted), **state)


def takes_any_mask(model: Any) -> bool:
    """Tell whether the attention function of the model takes a mask of its own for every query and key."""
    return model.config._attn_implementation in ("sdpa", "eager")


def count_prompt(prompt: Prompt) -> tuple[int, int]:
    """Count memory slots and tokens of a prompt."""
    slots = sum(piece.slots for piece in prompt if isinstance(piece, GistMemory))
    return slots, sum(piece.shape[0] for piece in prompt if isinstance(piece, Tensor))


def _checked(prompt: Prompt) -> list[Tensor | GistMemory]:
    for piece in prompt:
        is_ids = isinstance(piece, Tensor) and piece.dim() == 1 and not piece.dtype.is_floating_point
        if not is_ids and not isinstance(piece, GistMemory):
            what = (
                f"a tensor of shape {tuple(piece.shape)}, {piece.dtype}" if isinstance(piece, Tensor) else repr(piece)
            )
            raise InputError(f"a piece of the prompt is {what}: give token ids of shape (tokens,) or a GistMemory.")
    return list(prompt)


# --- one pass -----------------------------------------------------------------------------------------------------


def _read_in_one_pass(model: Any, prompts: list[list[Tensor | GistMemory]]) -> tuple[list[Tensor], dict[str, Any]]:
    device = model.get_input_embeddings().weight.device
    layout = lay_out(prompts, device)
    cache, in_front = DynamicCache(), rotated_slots(model, layout)
    for number, (keys, values) in enumerate(in_front):
        cache.update(keys, values, number)
    past: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    layers = decoder_of(model).layers
    if model.training and getattr(layers[0], "gradient_checkpointing", False):
        # Such a layer runs twice, so it refuses a cache that grows: memories go in by the hooks.
        window = Window(len(layers), None, tuple(zip(*in_front, strict=True)) or None)  # type: ignore[arg-type]
        cache, past = DynamicCache(), {"gist_window": window, "use_cache": False}
    hidden = torch.empty((len(prompts), 0, model.config.hidden_size), dtype=model.dtype, device=device)
    if layout.ids.shape[1]:
        hidden = decoder_of(model)(
            inputs_embeds=_embed(model, layout),
            position_ids=layout.positions.clamp(min=0),
            attention_mask=as_mask(model, visible(layout)),
            **past,
        ).last_hidden_state  # (batch, tokens, hidden)
    state = {
        "cache": cache,
        "ids": torch.cat((torch.full_like(layout.slot_positions, NOWHERE), layout.ids.clamp(min=NOWHERE)), dim=1),
        "filled": torch.cat((layout.slot_positions, layout.positions), dim=1) != NOWHERE,
        "lengths": tuple(sum(count_prompt(prompt)) for prompt in prompts),
    }
    return [row[ids >= 0] for row, ids in zip(hidden, layout.ids, strict=True)], state


def _embed(model: Any, layout: Layout) -> Tensor:
    """Input embeddings of tokens and soft embeddings, shape (batch, tokens, hidden)."""
    embedded: Tensor = model.get_input_embeddings()(layout.ids.clamp(min=0))
    if not layout.soft:
        return embedded
    is_soft = layout.ids <= SOFT
    rows = torch.cat([memory.embeddings.to(embedded) for memory in layout.soft])
    return embedded.index_put((is_soft,), rows[SOFT - layout.ids[is_soft]])


# --- piece by piece -----------------------------------------------------------------------------------------------


def _read_in_sequence(model: Any, prompts: list[list[Tensor | GistMemory]]) -> tuple[list[Tensor], dict[str, Any]]:
    device = model.get_input_embeddings().weight.device
    read = [_read_pieces(model, prompt, device) for prompt in prompts]
    ids = pad_left([torch.cat(_placeholders(prompt)) for prompt in prompts]).to(device)
    lengths = tuple(sum(count_prompt(prompt)) for prompt in prompts)
    columns = torch.arange(ids.shape[1], device=device)
    state = {
        "cache": _merge([cache for _, cache in read], ids.shape[1]),
        "ids": ids,
        "filled": columns >= ids.shape[1] - torch.tensor(lengths, device=device)[:, None],
        "lengths": lengths,
    }
    return [hidden for hidden, _ in read], state


def _placeholders(prompt: list[Tensor | GistMemory]) -> list[Tensor]:
    parts = [torch.full((p.slots,), NOWHERE) if isinstance(p, GistMemory) else p.cpu() for p in prompt]
    return [torch.empty(0, dtype=torch.long), *parts]


def _read_pieces(model: Any, prompt: list[Tensor | GistMemory], device: torch.device) -> tuple[Tensor, DynamicCache]:
    cache = DynamicCache()
    hidden = [torch.empty((0, model.config.hidden_size), dtype=model.dtype, device=device)]
    start = 0
    for piece in prompt:
        layout = lay_out([[piece]], device)
        if layout.memories:
            moved = replace(layout, slot_positions=layout.slot_positions + start)
            for number, (keys, values) in enumerate(rotated_slots(model, moved)):
                cache.update(keys, values, number)
        elif layout.ids.shape[1]:
            places: dict[str, Any] = {"position_ids": layout.positions + start, "past_key_values": cache}
            out = decoder_of(model)(inputs_embeds=_embed(model, layout), use_cache=True, **places)
            hidden += [] if layout.soft else [out.last_hidden_state[0]]
        start = cache.get_seq_length()
    return torch.cat(hidden), cache


def _merge(caches: list[Any], columns: int) -> DynamicCache:
    """Stack caches of one sequence each, padded on the left."""
    merged = DynamicCache()
    filled = [cache for cache in caches if cache.get_seq_length()]
    for number in range(len(filled[0].layers) if filled else 0):
        like = filled[0].layers[number].keys
        rows = []
        for cache in caches:
            tensors = (
                (cache.layers[number].keys, cache.layers[number].values) if cache in filled else (like[:, :, :0],) * 2
            )
            rows.append([pad(tensor, (0, 0, columns - tensor.shape[2], 0)) for tensor in tensors])
        keys, values = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
        merged.update(keys, values, number)
    return merged


# --- logits -------------------------------------------------------------------------------------------------------


def _select_logits(model: Any, hidden: list[Tensor], wanted: Wanted) -> tuple[Tensor, ...]:
    if isinstance(wanted, str):
        if wanted == "none":
            return ()
        if wanted == "last":
            hidden = [row[-1:] for row in hidden]
    else:
        hidden = [row[index.to(row.device)] for row, index in zip(hidden, wanted, strict=True)]
    logits = model.get_output_embeddings()(torch.cat(hidden))
    return torch.split(logits, [len(row) for row in hidden])
