"""Memories of random numbers, and an engine that makes them from texts without a model."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.memory.memory import GistMemory, Progress, Segment
from ultragist_rag.store import GistStore

CONFIG = GistConfig(window=16, ratio=4)


def make_memory(seed=0, slots=5, dtype=torch.float32, **changes):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(1, 2, slots, 8, generator=generator).to(dtype) for _ in range(6)]
    values = {
        "keys": tuple(tensors[:3]),
        "values": tuple(tensors[3:]),
        "segments": (Segment("gist", 0, slots, 0, 4 * slots, 4),) if slots else (),
        "config": CONFIG,
        "progress": Progress(tokens=4 * slots, window_start=4 * slots),
        "fingerprint": "model-1",
        "tokenizer_fingerprint": "tokenizer-1",
        "lead_token": 1,
    }
    return GistMemory(**{**values, **changes})


def same(one, other):
    """Say whether two memories are equal in every bit and every field."""
    fields = ("segments", "config", "progress", "fingerprint", "tokenizer_fingerprint", "lead_token", "joint", "dtype")
    fields += ("verbatim",)
    pairs = zip(one.keys + one.values, other.keys + other.values, strict=True)
    return all(getattr(one, name) == getattr(other, name) for name in fields) and all(
        torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs
    )


class TextEngine:
    """Stands in for an engine: the memory of a text is drawn from its hash."""

    def __init__(self, fingerprint="model-1", config=CONFIG, tokenizer_fingerprint="tokenizer-1"):
        self.fingerprint = fingerprint
        self.config = config
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.model = SimpleNamespace(dtype=torch.float32)
        self.batches = []

    def compress(self, texts, *, ratio, joint=False):
        self.batches.append(list(texts))
        return [self.one(text, ratio, joint) for text in texts]

    def one(self, text, ratio=4, joint=False):
        seed = int.from_bytes(hashlib.sha256(f"{ratio}{text}".encode()).digest()[:4], "big")
        slots = -(-len(text) // ratio)
        segments = (Segment("gist", 0, slots, 0, len(text), ratio),) if slots else ()
        names = {"fingerprint": self.fingerprint, "tokenizer_fingerprint": self.tokenizer_fingerprint}
        return make_memory(seed, slots, segments=segments, joint=joint, config=self.config, **names).seal()


@pytest.fixture(name="make_memory")
def make_memory_fixture():
    return make_memory


@pytest.fixture(name="same")
def same_fixture():
    return same


@pytest.fixture
def make_engine():
    return TextEngine


@pytest.fixture
def engine():
    return TextEngine()


@pytest.fixture(params=["memory", "file", pytest.param("redis", marks=pytest.mark.redis)])
def url(request, tmp_path):
    """One URL for each kind of store; the same kind opened twice with it is the same store."""
    if request.param == "redis":
        return request.getfixturevalue("redis_url")
    return {"memory": f"memory://{tmp_path}", "file": str(tmp_path / "gists")}[request.param]


@pytest.fixture
def store(url):
    return GistStore.open(url, secret="a secret of the tests")
