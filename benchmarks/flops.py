"""Count the work that a text is worth, whoever does it.

Is        integer arithmetic: 2 x parameters x raw tokens, plus attention of raw tokens to what they see.
Flow      [flops] -> suites.
Change    what counts as work.
Holds     gist rows and the projections of their own earn nothing, nor do embedding table and logits.
"""

from __future__ import annotations

from typing import Any

from ultragist_rag import UltraGist

__all__ = ["compress_flops", "prefill_flops"]


def prefill_flops(engine: UltraGist, n_tokens: int) -> int:
    """Work of a plain forward over one text.

    Args:
        engine: The model.
        n_tokens: Tokens of the text.

    Returns:
        Floating-point operations.
    """
    return 2 * _n_weights(engine) * n_tokens + _attention(engine) * (n_tokens * (n_tokens + 1) // 2)


def compress_flops(engine: UltraGist, n_tokens: int, ratio: int) -> int:
    """Work of the raw rows while one text is condensed: each sees its window so far and the gists in front of it.

    Args:
        engine: The model; its stride is its window.
        n_tokens: Tokens of the text.
        ratio: Raw tokens per gist.

    Returns:
        Floating-point operations.
    """
    window = engine.config.window
    n_seen = 0
    for start in range(0, n_tokens, window):
        rows = min(window, n_tokens - start)
        n_seen += rows * (rows + 1) // 2 + rows * (start // ratio)
    return 2 * _n_weights(engine) * n_tokens + _attention(engine) * n_seen


def _n_weights(engine: UltraGist) -> int:
    """Numbers in the matrices of the decoder layers."""
    named: Any = engine.attachment.decoder.layers.named_parameters()
    return sum(value.numel() for name, value in named if value.dim() == 2 and "ultragist_" not in name)


def _attention(engine: UltraGist) -> int:
    """Operations of a row for each key that it sees: the product and the weighted value, in all heads and layers."""
    config, attachment = engine.model.config, engine.attachment
    return int(4 * config.num_attention_heads * attachment.head_dim * attachment.n_layers)
