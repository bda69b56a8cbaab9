"""The architectures of docs/concepts.md as settings of `GistConfig`, so that tests can go through all of them."""

import pytest

COARSE = {"placement": "append", "attention": "full-coverage"}
ARCHITECTURES = {
    "fine-kv-step-expansion": {"attention": "step-expansion"},
    "fine-kv-segmentation": {"attention": "segmentation"},
    "fine-kv-interleave": {"placement": "interleave", "attention": "full-coverage"},
    "coarse-kv": COARSE,
    "coarse-recurrent": {**COARSE, "memory": "recurrent"},
}
ALL = [pytest.param(settings, id=name) for name, settings in ARCHITECTURES.items()]
KV = [pytest.param(settings, id=name) for name, settings in ARCHITECTURES.items() if "memory" not in settings]
