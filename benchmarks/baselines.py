"""What answers are measured against: the plain model in front of keys and values of a given length.

Is        a stock model that never makes a mask, caches with random content, the bytes that a forward has to read.
Flow      shapes -> [baselines] -> suites.
Change    how the plain model is let off what would flatter us.
Not here  which of them a suite takes -> suites/.
Holds     the plain model gives the same tokens without a mask wherever one token, or a whole text, is read.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.shapes import stock_model
from ultragist_rag import UltraGist

__all__ = ["kv_bytes", "next_token", "random_cache", "unmasked_model", "weight_bytes"]

_UNMASKED = "sdpa-unmasked"


def unmasked_model(engine: UltraGist) -> Any:
    """Make the plain model of an engine, with attention that has no mask.

    Several tokens behind a cache would need one, and transformers' sdpa repeats all keys and values for it. Without it
    these tokens see each other, which takes as long as the best kernel takes: what comes out is not to be read.

    Args:
        engine: The engine; the weights are the very same in memory.

    Returns:
        The model.
    """
    AttentionInterface.register(_UNMASKED, _unmasked)
    plain = stock_model(engine)
    config = copy.deepcopy(engine.model.config)  # the engine goes on with its own
    config._attn_implementation = _UNMASKED
    for module in plain.modules():
        if hasattr(module, "config"):
            module.config = config
    return plain


def _unmasked(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    whole = query.shape[2] == key.shape[2]
    given = {name: value for name, value in settings.items() if name not in ("attention_mask", "is_causal")}
    return sdpa_attention_forward(module, query, key, value, None, is_causal=whole, **given)


def next_token(model: Any, ids: Tensor, cache: DynamicCache) -> Tensor:
    """Read tokens behind a cache, and choose the next one from the logits of the last alone.

    Args:
        model: A plain model.
        ids: Token ids, shape (batch, tokens).
        cache: Keys and values in front; it grows.

    Returns:
        Token ids, shape (batch,), on the CPU: nothing is left to be computed.
    """
    read = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    chosen: Tensor = read.logits[:, -1].argmax(-1).cpu()
    return chosen


class _RoomyLayer(DynamicLayer):
    """Keys and values with room behind them: what is new is written there, and nothing is copied."""

    def __init__(self, keys: Tensor, values: Tensor, n: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.room = (keys, values)
        self.n = n

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write behind what is there."""
        stop = self.n + key_states.shape[2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, self.n : stop] = states
        self.n = stop
        self.keys, self.values = (room[:, :, :stop] for room in self.room)
        return self.keys, self.values


def random_cache(engine: UltraGist, batch: int, n: int, *, room: int | None = None) -> DynamicCache:
    """Make a cache with random keys and values, the same in all rows and layers.

    Args:
        engine: The model.
        batch: Rows.
        n: Columns.
        room: Columns that may follow, written in place. None for transformers' own cache, which copies all keys and
            values for every token.

    Returns:
        The cache.
    """
    attachment, config = engine.attachment, engine.model.config
    shape = (1, config.num_key_value_heads, n, attachment.head_dim)
    one = torch.randn(shape, device=attachment.device).to(attachment.dtype)
    cache = DynamicCache()
    for _ in range(attachment.n_layers):
        keys, values = (_repeated(one, batch, room or 0) for _ in range(2))
        layer = DynamicLayer() if room is None else _RoomyLayer(keys, values, n)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys[:, :, :n], values[:, :, :n]
        cache.layers.append(layer)
    return cache


def _repeated(one: Tensor, batch: int, room: int) -> Tensor:
    _, heads, n, size = one.shape
    rows = one.new_empty((batch, heads, n + room, size))
    rows[:, :, :n] = one
    rows[:, :, n:] = 0
    return rows


def weight_bytes(engine: UltraGist) -> int:
    """Bytes of the weights that a plain forward reads: layers and output, no gist modules, no embedding table."""
    layers: Any = engine.attachment.decoder.layers.named_parameters()
    weights = [value for name, value in layers if "ultragist_" not in name]
    weights.append(engine.model.get_output_embeddings().weight)
    return sum(value.numel() * value.element_size() for value in weights)


def kv_bytes(engine: UltraGist) -> int:
    """Bytes of keys and values of one column in all layers."""
    attachment = engine.attachment
    numbers = 2 * attachment.n_layers * int(engine.model.config.num_key_value_heads) * attachment.head_dim
    return numbers * attachment.dtype.itemsize
