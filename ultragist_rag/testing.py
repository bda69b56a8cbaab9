"""Tiny random models for tests and doctests; nothing is downloaded.

Is        a Llama, Mistral, Qwen2 or Qwen3 of three layers, with every weight random, norms and biases included.
Flow      the outermost layer: may import everything, is imported by tests and examples only.
Change    a new family for the tests: one line in `_FAMILIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ultragist_rag.config import GistConfig

if TYPE_CHECKING:
    from ultragist_rag.engine import UltraGist

__all__ = ["FAMILIES", "randomise", "tiny_engine", "tiny_model"]

_FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
FAMILIES = tuple(_FAMILIES)


def tiny_model(family: str = "llama", *, seed: int = 0, **settings: Any) -> Any:
    """Build a tiny causal LM with random weights, float32, in eval mode.

    Args:
        family: `llama`, `mistral`, `qwen2` or `qwen3`.
        seed: Of the weights; the global generator is left alone.
        settings: Override values of the Hugging Face config.

    Returns:
        The model: 3 layers, hidden size 64, 4 heads of width 16, 2 key and value heads, 100 tokens, 1024 positions.

    Example:
        >>> tiny_model("qwen3").config.num_hidden_layers
        3
    """
    import transformers

    name = _FAMILIES[family]
    defaults: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 100,
        "max_position_embeddings": 1024,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    if family == "llama":
        del defaults["sliding_window"]
    config = getattr(transformers, f"{name}Config")(**{**defaults, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        randomise(model.named_parameters())
    return model


@torch.no_grad()
def randomise(parameters: Any, seed: int | None = None) -> None:
    """Fill parameters with random numbers: norms around 1, biases and weights around 0, so that every one matters.

    Args:
        parameters: Pairs of name and parameter.
        seed: Of a generator for these numbers; None takes the global one.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for name, value in parameters:
        noise = torch.randn(value.shape, generator=generator).to(value)
        value.copy_(1 + 0.2 * noise if "norm" in name else noise * (0.5 if "embed" in name else 0.12))


def tiny_engine(
    family: str = "llama", *, seed: int = 0, model: dict[str, Any] | None = None, **settings: Any
) -> UltraGist:
    """Attach a tiny engine, without tokenizer, whose gist parameters are random and thus differ from the base.

    Args:
        family: As `tiny_model`.
        seed: Of model and gist parameters.
        model: Override values of the Hugging Face config.
        settings: Of `GistConfig`; `lead_token` defaults to `none`.

    Returns:
        The engine.
    """
    from ultragist_rag.engine import UltraGist

    config = GistConfig(**{"window": 8, "ratio": 4, "lead_token": "none", **settings})
    engine = UltraGist.attach(tiny_model(family, seed=seed, **(model or {})), None, config)
    randomise(engine.gist_parameters().items(), seed + 1)
    return engine
