"""Prove, before any memory is made, that this model can be followed exactly.

Is        two checks: the modules are where we expect them; captured keys, rotated by us, are the stock cache's keys.
          And one question: whether the fast way to compress gives on this model what the plain one gives.
Flow      types -> [modeling] -> memory.
Change    what a model must fulfil.
Holds     a family whose keys are not "projection, norm if any, half-split RoPE" is refused, not served wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ultragist_rag.errors import UnsupportedModelError
from ultragist_rag.modeling.rope import decoder_of, model_cos_sin, rotate
from ultragist_rag.modeling.window import Window

if TYPE_CHECKING:
    from ultragist_rag.modeling.attach import Attachment

__all__ = ["can_run_kept", "check_keys", "check_structure"]

_LENGTH_DEPENDENT = ("dynamic", "longrope")
_N_TOKENS, _N_GISTS = 16, 4


def check_structure(model: Any) -> None:
    """Check that the modules are where hooks expect them.

    Args:
        model: A causal LM.

    Raises:
        UnsupportedModelError: If a module is missing, or the rotary embedding depends on the length.
    """
    name = type(model).__name__
    try:
        decoder = decoder_of(model)
        parts = [decoder.embed_tokens, decoder.rotary_emb, decoder.norm, model.lm_head]
        layers = list(decoder.layers)
        parts += [getattr(layer.self_attn, f"{letter}_proj") for layer in layers for letter in "qkvo"]
        parts += [layer.self_attn.head_dim for layer in layers]
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{name} is not built like Llama ({error}). Use a Llama, Mistral, Qwen2 or Qwen3 model."
        ) from error
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT:
        raise UnsupportedModelError(
            f"{name} uses rope_type {rope['rope_type']!r}, whose angles depend on the length, so stored keys would not "
            "keep their meaning. Use a model with default, linear, llama3 or yarn positions."
        )


@torch.no_grad()
def check_keys(attachment: Attachment) -> None:
    """Compare captured and rotated keys, values and logits with those of the stock model.

    Args:
        attachment: The model with its hooks.

    Raises:
        UnsupportedModelError: If they differ; the message names the layer.
    """
    from transformers import DynamicCache

    model, name = attachment.model, type(attachment.model).__name__
    vocab = int(model.config.vocab_size)
    ids = torch.randint(0, vocab, (1, _N_TOKENS), generator=torch.Generator().manual_seed(0)).to(attachment.device)
    window, cache = Window(attachment.n_layers), DynamicCache()
    with attachment.lock:
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, gist_window=window).logits
        hidden = attachment.decoder(input_ids=ids, use_cache=False).last_hidden_state
    cos, sin = model_cos_sin(model, torch.arange(_N_TOKENS)[None])
    if cos.shape[-1] != attachment.head_dim:
        raise UnsupportedModelError(
            f"{name} rotates {cos.shape[-1]} of {attachment.head_dim} numbers of every head. {_ADVICE}"
        )
    if len(cache.layers) != attachment.n_layers:
        raise UnsupportedModelError(f"{name} caches {len(cache.layers)} layers but has {attachment.n_layers}.")
    layers: list[Any] = list(cache.layers)
    for index, layer in enumerate(layers):
        keys, values = window.keys[index], window.values[index]
        if keys is None or values is None or keys.shape != layer.keys.shape:
            raise UnsupportedModelError(f"{name}: keys of layer {index} have another shape than its cache. {_ADVICE}")
        if not (_close(rotate(keys, cos, sin), layer.keys) and _close(values, layer.values)):
            raise UnsupportedModelError(
                f"{name}: layer {index} does not make keys and values by projection and half-split RoPE. {_ADVICE}"
            )
    if not _close(model.lm_head(hidden), logits):
        raise UnsupportedModelError(f"{name} does more to its logits than lm_head. {_ADVICE}")


@torch.no_grad()
def can_run_kept(attachment: Attachment) -> bool:
    """Tell whether keys and values of some rows can be had without computing the others to the end.

    Args:
        attachment: The model with its hooks.

    Returns:
        Whether `encode_kept` equals `encode` on this model; it is not asked to on several devices.
    """
    from ultragist_rag.modeling.encode import encode
    from ultragist_rag.modeling.kept import encode_kept
    from ultragist_rag.modeling.split import Split

    model = attachment.model
    layers = attachment.decoder.layers
    spread = len(set((getattr(model, "hf_device_map", None) or {"": 0}).values())) > 1
    if attachment.config.memory == "recurrent" or spread or not hasattr(layers[-1], "input_layernorm"):
        return False
    if model.config._attn_implementation == "eager":
        return False
    device, n = attachment.device, _N_TOKENS
    ids = torch.randint(0, int(model.config.vocab_size), (1, n), generator=torch.Generator().manual_seed(1)).to(device)
    kept = torch.arange(n - _N_GISTS, n, device=device)[None]
    positions, seen = torch.arange(n, device=device)[None], _causal(n, device)
    kept_seen = seen[:, :, kept[0]]
    with attachment.lock:
        whole = encode(attachment, ids, positions=positions, visible=seen, gist_rows=kept[0])
        places: dict[str, Any] = {"kept": kept, "kept_visible": kept_seen, "gists": kept[0]}
        places["kept_gists"] = torch.arange(_N_GISTS, device=device)
        for visible in (seen, Split(n - _N_GISTS, lead=False, mask=kept_seen)):
            try:
                found = encode_kept(attachment, ids, positions=positions, visible=visible, **places)
            except (
                AttributeError,
                LookupError,
                TypeError,
                ValueError,
                RuntimeError,
            ):  # its layers are called otherwise
                return False
            for mine, theirs in zip(found, (whole.keys, whole.values), strict=True):
                wanted = [part[:, :, kept[0].to(part.device)] for part in theirs]
                if not all(map(_close, mine, wanted)):
                    return False
    return True


def _causal(n: int, device: torch.device) -> Tensor:
    return torch.ones((1, 1, n, n), dtype=torch.bool, device=device).tril()


_ADVICE = "Memories of it would be silently wrong, so it is refused: use a Llama, Mistral, Qwen2 or Qwen3 model."


def _close(mine: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-5 if theirs.dtype == torch.float32 else 3e-2
    scale = theirs.float().abs().max().clamp_min(1e-6)
    return bool((mine.float() - theirs.float().to(mine.device)).abs().max() <= tolerance * scale)
