"""Run rows through the model once, behind a past that is given, and bring back their keys, values and hidden states.

Is        the only place that calls the decoder for compression; no logits are computed.
Flow      types -> [modeling] -> memory.
Change    how a forward is made (attention implementation, devices).
Not here  which rows, where they stand and what they see -> layout/, memory/windows.py.
Holds     differentiable end to end, under autocast and gradient checkpointing (the non-reentrant kind) too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.rope import model_cos_sin, rotate
from ultragist_rag.modeling.split import NAME, Split, register
from ultragist_rag.modeling.window import Window
from ultragist_rag.types import BatchIds, Hidden, PastPositions, SoftRows, VisibilityMask

__all__ = ["Encoded", "Past", "encode", "encode_soft", "masked", "rotated_past"]


Past = tuple[Sequence[Tensor], Sequence[Tensor], PastPositions]
"""What stands in front: keys before RoPE and values of each layer, (batch, kv_heads, past, head_dim), and positions, of
shape (batch, past) or (1, past)."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Captured rows.

    Attributes:
        keys: Keys before RoPE, (batch, kv_heads, rows, head_dim) for each layer.
        values: Values, shapes as `keys`.
        hidden: Last hidden states, behind the final norm.
    """

    keys: list[Tensor]
    values: list[Tensor]
    hidden: Hidden


def encode(
    attachment: Attachment,
    ids: BatchIds,
    *,
    positions: BatchIds,
    visible: VisibilityMask,
    past: Past | None = None,
    gist_rows: Tensor | None = None,
) -> Encoded:
    """Run rows through the decoder.

    Args:
        attachment: The model; the caller holds its lock.
        ids: Token ids of the rows; what stands in gist rows does not matter.
        positions: RoPE positions of the rows.
        visible: What each row sees of the past and of the rows, shape (batch, 1, rows, past + rows).
        past: What stands in front.
        gist_rows: Places of gists in the flattened (batch * rows) rows; None for none.

    Returns:
        Keys, values and hidden states of the rows.
    """
    window = Window(attachment.n_layers, gist_rows, rotated_past(attachment, past))
    with masked(attachment, visible) as mask:
        output = attachment.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, gist_window=window
        )
    keys, values = ([part for part in parts if part is not None] for parts in (window.keys, window.values))
    return Encoded(keys, values, output.last_hidden_state)


def encode_soft(
    attachment: Attachment,
    ids: BatchIds,
    soft: SoftRows,
    *,
    positions: PastPositions,
    visible: VisibilityMask,
    gist_rows: Tensor | None = None,
) -> Hidden:
    """Run rows through the decoder behind soft embeddings, which run with them as input rows.

    Paper: arXiv 2412.17483, section 2 (recurrent memory).

    Args:
        attachment: The model; the caller holds its lock.
        ids: Token ids of the rows; what stands in gist rows does not matter.
        soft: Soft embeddings in front.
        positions: RoPE positions of soft embeddings and rows, shape (batch, soft + rows).
        visible: What each of them sees, shape (batch, 1, soft + rows, soft + rows).
        gist_rows: Places of gists in the flattened (batch * rows) rows; None for none.

    Returns:
        Hidden states of the rows, behind the final norm.
    """
    rows, n_soft = attachment.embed(ids, gist_rows), soft.shape[1]
    places = None if gist_rows is None else gist_rows + (gist_rows // ids.shape[1] + 1) * n_soft
    with masked(attachment, visible) as mask:
        output = attachment.decoder(
            inputs_embeds=torch.cat((soft.to(rows), rows), dim=1),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            gist_window=Window(attachment.n_layers, places),
        )
    hidden: Tensor = output.last_hidden_state
    return hidden[:, n_soft:]


def rotated_past(attachment: Attachment, past: Past | None) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
    """Rotate the keys of a past to where they stand.

    Args:
        attachment: The model.
        past: What stands in front, if anything.

    Returns:
        Rotated keys and values of each layer; None if there are no slots.
    """
    if past is None or not past[0][0].shape[2]:
        return None
    cos, sin = model_cos_sin(attachment.model, past[2])
    return [rotate(keys.to(cos.dtype), cos, sin) for keys in past[0]], past[1]


@contextmanager
def masked(attachment: Attachment, visible: Tensor | Split) -> Iterator[Tensor | Split]:
    """Give the mask as the attention implementation takes it; flash attention gives way to sdpa meanwhile.

    Args:
        attachment: The model; its attention function may be another one inside the block, and it is settled behind it.
        visible: What rows see.

    Yields:
        The mask to call layers with.
    """
    model = attachment.model
    config = model.config
    chosen = config._attn_implementation
    mask: Tensor | Split = visible
    if isinstance(visible, Split):
        register()
        config._attn_implementation = NAME
    elif chosen == "eager":
        dtype = model.get_input_embeddings().weight.dtype
        empty = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        mask = empty.masked_fill(~visible, torch.finfo(dtype).min)
    else:
        config._attn_implementation = "sdpa"
    try:
        yield mask
    finally:
        config._attn_implementation = chosen
        attachment.settle()
