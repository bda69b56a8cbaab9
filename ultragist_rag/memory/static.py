"""Caches of fixed size, kept from one call to the next: what transformers needs to compile decoding.

Is        `static_cache`: the cache of a model for so many rows and columns, emptied.
Flow      errors -> [static] -> generate.
Change    how lengths are rounded, how many caches are kept.
Not here  what is put into it -> beginning.py; whether transformers compiles -> transformers (it does on GPUs).
Holds     one cache for each model: a call with other rows or columns lets the one before go.
Source    static addresses are what CUDA graphs replay: transformers' documentation of `StaticCache`.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from ultragist_rag.errors import InputError

__all__ = ["static_cache"]

_STEP = 256
"""Columns are rounded up to a multiple, so that prompts of like length use one cache and one compiled graph."""

_kept: WeakKeyDictionary[Any, tuple[object, StaticCache]] = WeakKeyDictionary()


def static_cache(model: Any, rows: int, columns: int) -> StaticCache:
    """Return an empty cache of fixed size.

    Args:
        model: The causal LM; the caller holds its lock.
        rows: Sequences.
        columns: Slots and tokens of the longest, new tokens included.

    Returns:
        The cache; the next call for the same model takes it back.

    Raises:
        InputError: If the installed transformers counts what a static cache holds by its numbers.
    """
    if not hasattr(StaticLayer(1), "cumulative_length"):
        raise InputError(
            "cache_implementation is 'static', but this version of transformers cannot go on from a static cache with "
            "padding. Upgrade transformers, or use 'dynamic'."
        )
    length = -(-columns // _STEP) * _STEP
    mode = torch.is_inference_mode_enabled()  # tensors made in that mode cannot be written to outside
    shape = (rows, length, mode, model.dtype, model.device)
    known = _kept.get(model)
    if known is not None and known[0] == shape:
        known[1].reset()
        return known[1]
    _kept.pop(model, None)
    cache = StaticCache(config=model.config, max_cache_len=length)
    _kept[model] = (shape, cache)
    return cache
