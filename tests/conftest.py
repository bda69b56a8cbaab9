"""Every test run checks the shapes that stand in the signatures, and goes without the network.

The import hook is installed here, before anything imports the package, and nowhere else: run time checks nothing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are more than twice as quick on one thread

import jaxtyping
import pytest

_SHAPE = r"\b(?:Float|Int|Bool)\["
_MODULES = (Path(__file__).parents[1] / "ultragist_rag").rglob("*.py")
_ALIASES = re.findall(
    r"^([A-Z]\w+) = (.+)$", "\n".join(one.read_text(encoding="utf-8") for one in _MODULES), re.MULTILINE
)
_SHAPES = re.compile(_SHAPE)
for _ in range(2):  # names of shapes, and names of what is made of them
    _SHAPES = re.compile(rf"{_SHAPE}|\b(?:{'|'.join(name for name, hint in _ALIASES if _SHAPES.search(hint))})\b")
_jaxtyped = jaxtyping.jaxtyped


def _checked(*, typechecker: Any) -> Any:
    """Check what has a shape in its annotations. The rest is left to mypy: its checks took half the time of tests."""

    def decorate(one: Any) -> Any:
        has_shapes = any(_SHAPES.search(str(hint)) for hint in getattr(one, "__annotations__", {}).values())
        return _jaxtyped(typechecker=typechecker)(one) if has_shapes else one

    return decorate


jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("ultragist_rag", "beartype.beartype")

sys.path.append(str(Path(__file__).parent))  # for `servers`
from servers import make_redis, redis_server, redis_url, s3_bucket, s3_server  # noqa: E402, F401


def make_tokenizer() -> Any:
    """Byte-level BPE without merges: one token per byte, four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|bos|>", "<|end|>", "<|unk|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def make_text_engine(seed: int = 0) -> Any:
    """A tiny random engine with a tokenizer, so that texts can be compressed and asked."""
    from ultragist_rag import GistConfig, UltraGist
    from ultragist_rag.testing import randomise, tiny_model

    tokenizer = make_tokenizer()
    model = tiny_model(seed=seed, vocab_size=len(tokenizer), max_position_embeddings=4096)
    config = GistConfig(window=64, ratio=4, ratios=(2, 4, 8), ratio_policy="step-random", lead_token=1)
    engine = UltraGist.attach(model, tokenizer, config)
    randomise(engine.gist_parameters().items(), seed + 1)
    return engine


@pytest.fixture(scope="session")
def text_engine() -> Any:
    engine = make_text_engine()
    assert engine.tokenizer_fingerprint  # kept from now on: some tests lend the tokenizer another template for a while
    return engine


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two saved models that differ in their weights."""
    folders = tmp_path_factory.mktemp("models") / "one", tmp_path_factory.mktemp("models") / "other"
    for seed, folder in enumerate(folders):
        make_text_engine(seed).save_pretrained(folder)
    return folders


@pytest.fixture
def own_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep key files out of the user's config folder."""
    monkeypatch.setenv("ULTRAGIST_SECRET", "a secret of the tests, long enough")
