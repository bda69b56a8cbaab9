"""Write the golden folders beside this file from the slow reference: `python tests/golden/make.py`.

Is        tiny models in the authors' two formats, and what the loops of tests/reference.py compute with them.
Holds     a second run writes the same bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import reference  # noqa: E402

from ultragist_rag.config import GistConfig  # noqa: E402
from ultragist_rag.modeling.attach import attach  # noqa: E402
from ultragist_rag.modeling.checkpoint import authors_name, authors_settings  # noqa: E402
from ultragist_rag.testing import randomise, tiny_model  # noqa: E402

MODEL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 256,
}
U = {"window": 16, "stride": 16, "ratio": [4], "ratio_mix": "step-random", "param": ["q", "k", "v", "o"]}
U |= {"sink_size": 1, "attn": "step-expansion", "attend_prev": True}
B = {**U, "param": ["q", "k", "v"], "sink_size": 0, "attn": "full-coverage", "pos": "interleave"}
CASES = {
    "ultragist-llama-prev": ("llama", "ultragist", U),
    "ultragist-mistral-noprev": ("mistral", "ultragist", {**U, "attend_prev": False, "sink_size": 2}),
    "ultragist-qwen3-fullcoverage": ("qwen3", "ultragist", {**U, "attn": "full-coverage"}),
    "ultragist-llama-segmentation": ("llama", "ultragist", {**U, "attn": "segmentation"}),
    "ultragist-llama-stride6-r2": ("llama", "ultragist", {**U, "stride": 6, "ratio": [2]}),
    "ultragist-llama-r6-uneven": ("llama", "ultragist", {**U, "ratio": [6]}),
    "ultragist-llama-sequence-0-4-3-2": ("llama", "ultragist", {**U, "ratio": [0, 4, 3, 2], "ratio_mix": "sequence"}),
    "beacon-qwen2-interleave": ("qwen2", "beacon", B),
    "beacon-llama-interleave-r6-drift-sink2": ("llama", "beacon", {**B, "ratio": [6], "sink_size": 2}),
    "beacon-llama-interleave-stepexpansion": ("llama", "beacon", {**B, "attn": "step-expansion", "attend_prev": False}),
    "beacon-llama-append-r6": ("llama", "beacon", {**B, "pos": "append", "attn": "step-expansion", "ratio": [6]}),
}
N = 53


def build(family: str, prefix: str, settings: dict) -> tuple[dict, GistConfig, torch.nn.Module, dict]:
    """Make a model with random gist parameters; return config.json, settings, model and gist parameters."""
    values = {f"{prefix}_{key}": value for key, value in settings.items()}
    config = authors_settings({**values, "max_position_embeddings": MODEL["max_position_embeddings"]})[1]
    model = tiny_model(family, **MODEL)
    attachment = attach(model, config, self_test=False)
    parameters = attachment.parameters()
    randomise(sorted(parameters.items()), seed=1)
    return values, config, model, parameters


def make(name: str) -> None:
    """Write one folder."""
    family, prefix, settings = CASES[name]
    values, config, model, parameters = build(family, prefix, settings)
    slow = reference.Reference(model)
    generator = torch.Generator().manual_seed(len(name))
    ids = torch.randint(3, MODEL["vocab_size"], (N,), generator=generator).tolist()
    with torch.no_grad():
        stream = reference.Stream(slow, config)
        tensors = {"input_ids": torch.tensor([ids]), "all_logits": stream.feed(ids)[None]}
        tensors["eval_loss"] = reference.loss(tensors["all_logits"][0], ids).view(1)
        for layer in range(MODEL["num_hidden_layers"]):
            for what in ("keys", "values"):
                tensors[f"memory.{layer}.{what}"] = reference.stack(stream.memory, layer, what)
        more = torch.randint(3, MODEL["vocab_size"], (14,), generator=generator).tolist()
        tensors["decode_input_ids"] = torch.tensor([more])
        tensors["decode_logits"] = torch.cat([stream.feed([token]) for token in more])
    stream = reference.Stream(slow, config, training=True)
    skipped = config.window if config.masks_first_window else 0
    train_loss = reference.loss(stream.feed(ids), ids, skipped)
    gradients = torch.autograd.grad(train_loss, list(parameters.values()), allow_unused=True)
    tensors["train_loss"] = train_loss.detach().view(1)
    for (key, value), gradient in zip(parameters.items(), gradients, strict=True):
        tensors[f"grad.{authors_name(key, prefix)}"] = torch.zeros_like(value) if gradient is None else gradient
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    state = {
        authors_name(key, prefix): value.detach().contiguous() for key, value in sorted(model.state_dict().items())
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / "golden.safetensors")
    contents = {**json.loads(model.config.to_json_string()), **values}
    contents.pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(contents, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
        print(case)  # noqa: T201
