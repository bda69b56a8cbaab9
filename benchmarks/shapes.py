"""Model shapes by name, and engines of these shapes with random weights.

Is        a registry of Hugging Face config settings, and what builds a model of them on a device within seconds.
Flow      engine -> [shapes] -> suite.
Change    a shape: one entry of `SHAPES`.
Holds     speed does not depend on weights: random ones of the right shape and format stand for trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.record import Setting
from ultragist_rag import GistConfig, UltraGist
from ultragist_rag.errors import InputError

__all__ = ["SHAPES", "Shape", "build_engine", "find_shape", "model_facts", "stock_model"]

_N_POSITIONS = 1 << 18
"""More than any suite needs: the rotary embeddings have no table, so this costs nothing."""

_LEAD = 1
"""A lead token stands in front of documents, as it does in use."""

_COMMON = {
    "max_position_embeddings": _N_POSITIONS,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model shape.

    Attributes:
        name: Its name.
        family: `Llama` or `Qwen2`; empty for the bundled model.
        settings: Of the Hugging Face config.
        gist: Settings of `GistConfig`.
    """

    name: str
    family: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    gist: dict[str, Any] = field(default_factory=dict)


def _sized(layers: int, hidden: int, mlp: int, heads: tuple[int, int], vocab: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
    }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3-8b", "Llama", {**_sized(32, 4096, 14336, (32, 8), 128_256), "rope_theta": 500_000.0}),
        Shape("qwen2-7b", "Qwen2", {**_sized(28, 3584, 18944, (28, 4), 152_064), "rope_theta": 1_000_000.0}),
        Shape("bundled"),
        Shape("tiny", "Llama", _sized(2, 64, 96, (4, 2), 100), {"window": 32}),
    )
}


def find_shape(name: str) -> Shape:
    """Find a shape.

    Args:
        name: Its name.

    Returns:
        The shape.

    Raises:
        InputError: If there is none of this name.
    """
    if name not in SHAPES:
        raise InputError(f"model shape {name!r} is unknown. Known are {', '.join(SHAPES)}.")
    return SHAPES[name]


def build_engine(shape: Shape, device: torch.device, dtype: torch.dtype, **settings: Any) -> UltraGist:
    """Build an engine of a shape: random weights, no tokenizer; the bundled model comes with its own of both.

    Args:
        shape: The shape.
        device: Where the weights are made; nothing of them is made elsewhere.
        dtype: Of all weights.
        settings: Of `GistConfig`, instead of those of the shape (window 1024, ratio 8 by default).

    Returns:
        The engine.
    """
    if not shape.family:
        return _bundled(device, dtype, settings)
    config = getattr(transformers, f"{shape.family}Config")(**_COMMON, **_rope(shape.settings))
    config._attn_implementation = "sdpa"
    model = _empty(getattr(transformers, f"{shape.family}ForCausalLM"), config, dtype).to_empty(device=device)
    _set_rotary(model, config, device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.fill_(1.0) if "norm" in name else value.normal_(0.0, 0.02, generator=generator)
    gist = GistConfig(**{"window": 1024, "ratio": 8, "lead_token": _LEAD, **shape.gist, **settings})
    return UltraGist.attach(model.eval().requires_grad_(False), None, gist)


def stock_model(engine: UltraGist) -> Any:
    """Make the plain Hugging Face model of an engine: no hooks, no gist modules, the very same weights in memory.

    Args:
        engine: An engine.

    Returns:
        The model, for baselines.
    """
    model = engine.model
    plain = _empty(type(model), model.config, engine.attachment.dtype)
    mine = {name: value for name, value in model.state_dict().items() if "ultragist_" not in name}
    plain.load_state_dict(mine, assign=True)
    _set_rotary(plain, model.config, engine.attachment.device)
    return plain.eval().requires_grad_(False)


def model_facts(engine: UltraGist) -> dict[str, Setting]:
    """Tell the shape of a model as a record keeps it: sizes, parameters without gist modules, window.

    Args:
        engine: An engine.

    Returns:
        Numbers by name.
    """
    config = engine.model.config
    names = [*_sized(0, 0, 0, (0, 0), 0)]
    n_parameters = sum(v.numel() for name, v in engine.model.named_parameters() if "ultragist_" not in name)
    sizes = {name: int(getattr(config, name)) for name in names}
    return {**sizes, "head_dim": engine.attachment.head_dim, "parameters": n_parameters, "window": engine.config.window}


def _bundled(device: torch.device, dtype: torch.dtype, settings: dict[str, Any]) -> UltraGist:
    engine = UltraGist.from_pretrained("bundled", dtype=dtype)
    if settings:
        config = replace(engine.config, **settings)
        engine = UltraGist.from_pretrained("bundled", dtype=dtype, config=config)
    engine.source_bias = 0.0  # decoding is timed beside that of others, which know none
    engine.model.to(device).requires_grad_(False)
    engine.model.config.max_position_embeddings = engine.attachment.n_positions = _N_POSITIONS
    return engine


def _empty(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return kind(config).to(dtype)


def _set_rotary(model: nn.Module, config: Any, device: torch.device) -> None:
    """Put real rotary embeddings, whose frequencies are float32 buffers, into a model that was made without numbers."""
    decoder: Any = model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(device)


def _rope(settings: dict[str, Any]) -> dict[str, Any]:
    theta = settings.get("rope_theta", 10_000.0)
    rest = {name: value for name, value in settings.items() if name != "rope_theta"}
    return {**rest, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
