"""Decode behind a cache that kvpress made smaller. Runs in the environment of the peers, and imports nothing of ours.

Is        one JSON object in as the argument, one out as the last line: seconds of decoding, in pairs.
Flow      [kvpress_decode], started by suites/decode.py.
Change    which presses there are.
Holds     kvpress and plain decoding are the same loop on the same model, alternating, on caches of one length.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

__all__ = ["measure"]

_PRESSES = {"knorm": "KnormPress", "snapkv": "SnapKVPress", "streaming_llm": "StreamingLLMPress"}


def measure(asked: dict[str, Any]) -> dict[str, list[float]]:
    """Time decoding after each press, and behind random keys and values of the same length.

    Args:
        asked: `config` of the model, `dtype`, `device`, `threads`, `batch`, `tokens` to read, `slots` to keep, `n_new`
            tokens to decode, `rounds`, and names of `presses`.

    Returns:
        Seconds in each round of `plain`, and by the names of the presses.

    Raises:
        SystemExit: If a press keeps another number of slots.
    """
    torch.set_num_threads(asked["threads"])
    device = torch.device(asked["device"])
    settings = dict(asked["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with device:
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, asked["dtype"]), attn_implementation="sdpa"
        )
    model.eval()
    ids = torch.randint(3, config.vocab_size, (asked["batch"], asked["tokens"]), device=device)
    caches = {name: _pressed(model, ids, name, asked["slots"]) for name in asked["presses"]}
    caches["plain"] = _random(next(iter(caches.values())))
    times: dict[str, list[float]] = {name: [] for name in caches}
    for number in range(asked["rounds"] + 1):
        for name in list(caches) if number % 2 else reversed(list(caches)):
            decode = partial(_decode, model, copy.deepcopy(caches[name]), ids, asked["n_new"])
            seconds = _timed(decode, device)
            if number:  # the first round warms up
                times[name].append(seconds)
    return times


def _pressed(model: Any, ids: Tensor, name: str, slots: int) -> DynamicCache:
    import kvpress  # type: ignore[import-not-found, unused-ignore]

    # kvpress rounds tokens * (1 - ratio) down
    press = getattr(kvpress, _PRESSES[name])(compression_ratio=1 - (slots + 0.5) / ids.shape[1])
    cache = DynamicCache()
    with press(model):
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    if cache.get_seq_length() != slots:
        raise SystemExit(f"{name} kept {cache.get_seq_length()} slots instead of {slots}.")
    return cache


def _random(like: DynamicCache) -> DynamicCache:
    cache: Any = copy.deepcopy(like)
    for layer in cache.layers:
        layer.keys, layer.values = (torch.randn_like(one) * one.std() for one in (layer.keys, layer.values))
    made: DynamicCache = cache
    return made


def _decode(model: Any, cache: DynamicCache, ids: Tensor, n_new: int) -> None:
    token = ids[:, -1:]
    for number in range(n_new):
        places = torch.full_like(token, ids.shape[1] + number)
        read = model(input_ids=token, past_key_values=cache, position_ids=places)
        token = read.logits[:, -1:].argmax(-1)


def _timed(run: Callable[[], None], device: torch.device) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begin


if __name__ == "__main__":
    with torch.inference_mode():
        sys.stdout.write("\n" + json.dumps(measure(json.loads(sys.argv[1]))) + "\n")
