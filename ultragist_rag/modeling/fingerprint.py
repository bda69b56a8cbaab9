"""Fingerprints: short names for what a memory depends on.

Is        hashes over config, tensor names and shapes, and sampled numbers of the weights.
Flow      config -> [modeling] -> engine, store.
Change    what counts as another model. Every change makes stored memories unreadable.
Holds     device, number format of loading and order of loading do not change a fingerprint; any retrained tensor does.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

__all__ = ["active_adapters", "base_fingerprint", "model_fingerprint", "tokenizer_fingerprint"]

_CONFIG_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope_parameters",
    "rms_norm_eps",
    "hidden_act",
    "tie_word_embeddings",
)
_GIST_MARK = ".ultragist_"
_N_SAMPLES = 16


def base_fingerprint(model: Any) -> str:
    """Name a base model, whether gist modules are attached or not.

    Args:
        model: A causal LM.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    config = {key: getattr(model.config, key, None) for key in _CONFIG_KEYS}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    _add_tensors(digest, {name: value for name, value in model.state_dict().items() if _GIST_MARK not in name})
    return digest.hexdigest()


def model_fingerprint(model: Any) -> str:
    """Name a model with its gist modules and active adapters.

    Args:
        model: A causal LM, attached or not.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(base_fingerprint(model).encode())
    _add_tensors(digest, {name: value for name, value in model.state_dict().items() if _GIST_MARK in name})
    digest.update(str(active_adapters(model)).encode())
    return digest.hexdigest()


def active_adapters(model: Any) -> Any:
    """Return what transformers says of the active PEFT adapters of a model; None if there are none."""
    active = getattr(model, "active_adapters", None) if getattr(model, "_hf_peft_config_loaded", False) else None
    return active() if callable(active) else active


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Name a tokenizer by what it does: vocabulary, special tokens, chat template and some probes.

    Args:
        tokenizer: A Hugging Face tokenizer, or None.

    Returns:
        64 hexadecimal digits; empty for None.
    """
    if tokenizer is None:
        return ""
    digest = hashlib.sha256()
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str).encode())
    digest.update(str(getattr(tokenizer, "chat_template", None)).encode())
    for probe in ("Gist tokens, 2026!", " leading  spaces\n\ttabs", "Ünïcödé — 漢字 🙂"):
        digest.update(json.dumps(tokenizer(probe)["input_ids"]).encode())
    return digest.hexdigest()


def _add_tensors(digest: Any, tensors: dict[str, Tensor]) -> None:
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(_sample(value))


def _sample(value: Tensor) -> bytes:
    """Sample numbers in a form that loading in a shorter format does not change: as bfloat16, or as packed bytes."""
    flat = value.reshape(-1)
    if not flat.numel() or flat.is_meta:  # weights that are offloaded cannot be sampled: name and shape must do
        return b""
    index = torch.linspace(0, flat.numel() - 1, min(_N_SAMPLES, flat.numel()), dtype=torch.float64).round().long()
    chosen = flat[index.to(flat.device)].cpu()
    if chosen.dtype.is_floating_point:
        return bytes(chosen.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return bytes(chosen.contiguous().view(torch.uint8).numpy().tobytes())
