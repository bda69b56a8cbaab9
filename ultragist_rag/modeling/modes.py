"""States that a model is in for a while: without dropout, with attention weights to look at.

Is        context managers that put back what they change, also after an error.
Flow      attach -> [modes] -> memory. The caller holds the lock of the model.
Change    what a forward shows of itself.
Not here  how a forward for compression is made -> encode.py.
Holds     afterwards the model is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from ultragist_rag.errors import UnsupportedModelError
from ultragist_rag.modeling.attach import Attachment

__all__ = ["in_eval_mode", "with_attention_weights"]


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Put every module of a model in eval mode for a while."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def with_attention_weights(attachment: Attachment, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Compute attention step by step for a while, and show the weights of each layer as soon as they are there.

    Only eager attention, which every model of transformers has, gives weights; masks must be additive meanwhile. The
    weights of a layer are not kept, so that those of a single layer lie in memory at a time.

    Args:
        attachment: The model.
        see: Called with the number of a layer and its weights, shape (batch, heads, queries, columns).

    Yields:
        Nothing.

    Raises:
        UnsupportedModelError: In a forward, if an attention layer gives no weights.
    """
    config = attachment.model.config
    chosen = config._attn_implementation
    handles = [
        layer.register_forward_hook(partial(_show, see, number)) for number, layer in enumerate(attachment.layers)
    ]
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = chosen
        for handle in handles:
            handle.remove()


def _show(see: Callable[[int, Tensor], None], number: int, _module: Any, _args: Any, output: Any) -> None:
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if weights is None:
        raise UnsupportedModelError(
            f"attention layer {number} gives no weights, so where it looked cannot be told: ask for 'leave-one-out'."
        )
    see(number, weights)
