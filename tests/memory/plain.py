"""Tiny stock models and memories made of plain keys, for the tests of prompts and generation."""

from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from ultragist_rag.config import GistConfig
from ultragist_rag.memory.memory import GistMemory, Segment
from ultragist_rag.modeling.rope import model_cos_sin, rotate

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
SIZES = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}


def plain_model(family="llama", attention="sdpa", **changes):
    """A stock model with random weights, large enough that attention matters."""
    torch.manual_seed(0)
    config = FAMILIES[family](**{**SIZES, **changes}, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def as_attachment(model):
    """What `prompt_forward` needs of an attachment, without gist parameters."""
    return SimpleNamespace(model=model)


def capture(model, ids):
    """Keys before RoPE and values of every layer, for ids of shape (tokens,), from hooks of our own."""
    keys, values, handles = [], [], []

    def keep(into, heads):
        def hook(module, args, out):
            out = out.unflatten(-1, (heads, -1)) if out.dim() == 3 else out
            into.append(out.transpose(1, 2))

        return hook

    for layer in model.model.layers:
        attention, heads = layer.self_attn, model.config.num_key_value_heads
        key_module = getattr(attention, "k_norm", attention.k_proj)
        handles.append(key_module.register_forward_hook(keep(keys, heads)))
        handles.append(attention.v_proj.register_forward_hook(keep(values, heads)))
    logits = model(ids[None]).logits[0]
    for handle in handles:
        handle.remove()
    return keys, values, logits


def slice_memory(keys, values, start, stop, **settings):
    """The tokens from `start` to `stop` of captured keys and values, as a memory."""
    segments = (Segment("raw", 0, stop - start, start, stop),) if stop > start else ()
    return GistMemory(
        keys=tuple(k[:, :, start:stop] for k in keys),
        values=tuple(v[:, :, start:stop] for v in values),
        segments=segments,
        config=GistConfig(window=64),
        **settings,
    )


def random_memory(model, slots, seed=0, **settings):
    """A memory of random keys and values: nothing that any text would give."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, model.config.num_key_value_heads, slots, model.config.head_dim)
    layers = range(model.config.num_hidden_layers)
    keys, values = ([torch.randn(shape, generator=generator) for _ in layers] for _ in range(2))
    return slice_memory(keys, values, 0, slots, **settings)


def random_ids(n, seed=0):
    return torch.randint(2, 100, (n,), generator=torch.Generator().manual_seed(seed))


def slow_logits(model, prompt):
    """Piece by piece with a tuple of keys and values that is put together by hand, one token at a time."""
    cache, position, logits = DynamicCache(), 0, []
    for piece in prompt:
        if isinstance(piece, GistMemory):
            for slot in range(piece.slots):
                cos, sin = model_cos_sin(model, torch.tensor([[position]]))
                for layer, (keys, values) in enumerate(zip(piece.keys, piece.values, strict=True)):
                    cache.update(rotate(keys[:, :, slot : slot + 1], cos, sin), values[:, :, slot : slot + 1], layer)
                position += 1
        else:
            for token in piece:
                out = model(token.view(1, 1), past_key_values=cache, position_ids=torch.tensor([[position]]))
                logits.append(out.logits[0, -1])
                position += 1
    return torch.stack(logits)
