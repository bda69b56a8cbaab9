"""Run rows through the model for the keys and values of some of them, and compute nothing that these do not need.

Is        `encode_kept`: all layers but the last two run whole; what remains of these is keys and values.
Flow      split, window, rope -> [kept] -> memory.
Change    what is left out.
Not here  the whole forward, with hidden states -> encode.py; whether a model can be run so -> selftest.py.
Holds     equals `encode`, rows picked afterwards. A layer's keys depend on the hidden states in front of it alone: the
          last layer makes keys and values of the kept rows, the one before it runs the kept rows, behind the keys and
          values of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ultragist_rag.modeling.attach import PREFIX, Attachment
from ultragist_rag.modeling.encode import Past, masked, rotated_past
from ultragist_rag.modeling.projections import gist_rows
from ultragist_rag.modeling.rope import model_cos_sin, rotate
from ultragist_rag.modeling.split import Split
from ultragist_rag.modeling.window import Window, take_rows
from ultragist_rag.types import BatchIds, Hidden, KeptMask, KeptRows, VisibilityMask

__all__ = ["encode_kept"]

KeysValues = tuple[list[Tensor], list[Tensor]]


def encode_kept(  # noqa: PLR0913 - as `encode`, and what is kept
    attachment: Attachment,
    ids: BatchIds,
    *,
    positions: BatchIds,
    visible: VisibilityMask | Split,
    kept: KeptRows,
    kept_visible: KeptMask,
    past: Past | None = None,
    gists: Tensor,
    kept_gists: Tensor,
) -> KeysValues:
    """Run rows through the decoder and bring back keys and values of some.

    Source: ours.

    Args:
        attachment: The model; the caller holds its lock.
        ids: Token ids of the rows; what stands in gist rows does not matter.
        positions: RoPE positions of the rows.
        visible: What each row sees of the past and of the rows.
        kept: Rows that are wanted, shape (batch, kept).
        kept_visible: What these see, shape (batch, 1, kept, past + rows).
        past: As for `encode`.
        gists: Places of gists in the flattened (batch * rows) rows.
        kept_gists: The same in the flattened (batch * kept) rows that are kept.

    Returns:
        Keys before RoPE, and values, of the kept rows: (batch, kv_heads, kept, head_dim) for each layer.
    """
    cos_sin = model_cos_sin(attachment.model, positions)
    window = Window(attachment.n_layers, gists, rotated_past(attachment, past), kept)
    hidden = attachment.embed(ids, gists)
    layers = attachment.decoder.layers
    with masked(attachment, visible) as mask:
        for layer in layers[:-2]:
            hidden = _run(layer, hidden, mask, cos_sin, positions, window)
    is_gist = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
    is_gist = is_gist.index_fill(0, gists, True).view(ids.shape)
    if attachment.n_layers > 1:
        number = attachment.n_layers - 2
        last = Window(attachment.n_layers, kept_gists, _behind_all(attachment, number, hidden, cos_sin, window.past))
        chosen = tuple(take_rows(part.expand(len(ids), -1, -1), kept) for part in cos_sin)
        visible_kept = _own_gists_apart(kept_visible, kept, is_gist)
        with masked(attachment, visible_kept) as mask:
            args = (mask, chosen, positions.expand_as(ids).gather(1, kept), last)
            hidden = _run(layers[number], take_rows(hidden, kept), *args)
        window.keys[number], window.values[number] = last.keys[number], last.values[number]
    else:
        hidden = take_rows(hidden, kept)
    window.keys[-1], window.values[-1] = _keys_values(attachment, attachment.n_layers - 1, hidden, kept_gists)
    keys, values = ([part for part in parts if part is not None] for parts in (window.keys, window.values))
    return keys, values


def _run(
    layer: Any, hidden: Hidden, mask: Any, cos_sin: tuple[Tensor, ...], positions: Tensor, window: Window
) -> Hidden:
    """Run one decoder layer."""
    output: Hidden = layer(
        hidden,
        attention_mask=mask,
        position_embeddings=cos_sin,
        position_ids=positions,
        past_key_values=None,
        use_cache=False,
        gist_window=window,
    )
    return output


def _keys_values(attachment: Attachment, number: int, hidden: Hidden, gists: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys before RoPE, and values, of a layer: shape (batch, kv_heads, rows, head_dim)."""
    layer = attachment.decoder.layers[number]
    normed = layer.input_layernorm(hidden)
    made = []
    for letter in "kv":
        base = getattr(layer.self_attn, f"{letter}_proj")
        output = base(normed)
        own = getattr(layer.self_attn, f"{PREFIX}_{letter}_proj", None)
        if own is not None and gists is not None:
            output = gist_rows(own, normed, output, gists)
        output = output.view(*output.shape[:2], -1, layer.self_attn.head_dim)
        if letter == "k" and hasattr(layer.self_attn, "k_norm"):
            output = layer.self_attn.k_norm(output)
        made.append(output.transpose(1, 2))
    return made[0], made[1]


def _behind_all(
    attachment: Attachment, number: int, hidden: Hidden, cos_sin: tuple[Tensor, Tensor], past: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Past of the kept rows in a layer: what lies in front of all rows, and all rows as if none were a gist."""
    keys, values = _keys_values(attachment, number, hidden, None)
    keys = rotate(keys, *cos_sin)
    if past is not None:
        keys = torch.cat((past[0][number].to(keys), keys), dim=2)
        values = torch.cat((past[1][number].to(values), values), dim=2)
    return [keys] * attachment.n_layers, [values] * attachment.n_layers


def _own_gists_apart(visible: KeptMask, kept: KeptRows, is_gist: Tensor) -> Tensor:
    """Let kept rows see gists among themselves, where they are projected as gists, and not among all rows."""
    n_past = visible.shape[3] - is_gist.shape[1]
    wide = (kept + n_past)[:, None, None].expand(-1, 1, visible.shape[2], -1)
    among = visible.gather(3, wide) & is_gist.gather(1, kept)[:, None, None]
    others = torch.cat((torch.ones_like(is_gist[:, :1]).expand(-1, n_past), ~is_gist), dim=1)
    return torch.cat((visible & others[:, None, None], among), dim=3)
