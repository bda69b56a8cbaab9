from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from benchmarks import kvpress_decode
from benchmarks.baselines import kv_bytes, next_token, random_cache, unmasked_model, weight_bytes
from benchmarks.kvpress_launch import decode_there
from benchmarks.page_cache import drop_pages, files_of, read_all, share_resident
from benchmarks.run import make_bench
from benchmarks.shapes import SHAPES
from benchmarks.suite import Bench
from benchmarks.suites.decode import decode
from ultragist_rag.errors import UltraGistError


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench(SHAPES["tiny"], torch.device("cpu"), torch.float32, "minimal")


@torch.no_grad()
def test_without_a_mask_a_text_is_read_as_with_one(bench: Bench) -> None:
    model, ids = unmasked_model(bench.engine), bench.ids(2, 17)
    one, other = DynamicCache(), DynamicCache()
    assert torch.equal(next_token(model, ids, one), next_token(bench.stock, ids, other))
    assert torch.equal(next_token(model, ids[:, :1], one), next_token(bench.stock, ids[:, :1], other))
    for mine, plain in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(mine.keys, plain.keys)
    assert bench.engine.model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_no_mask_is_made_behind_a_cache(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Any] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, attn_mask: Any = None, is_causal: bool = False, **settings: Any) -> Any:
        masks.append((attn_mask, is_causal))
        return plain(*args, attn_mask=attn_mask, is_causal=is_causal, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    next_token(unmasked_model(bench.engine), bench.ids(1, 5), random_cache(bench.engine, 1, 20))
    decode(bench, random_cache(bench.engine, 2, 19), 20, 3)
    assert set(masks) == {(None, False)}


@torch.no_grad()
def test_writing_in_place_decodes_the_same(bench: Bench) -> None:
    caches = []
    for room in (None, 4):
        torch.manual_seed(0)
        caches.append(random_cache(bench.engine, 2, 19, room=room))
    grown, roomy = (decode(bench, cache, 20, 4) for cache in caches)
    assert torch.equal(grown, roomy)
    assert grown.shape == (2, 24)
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_bytes_are_those_of_the_tensors(bench: Bench) -> None:
    cache: Any = random_cache(bench.engine, 1, 7)
    assert 7 * kv_bytes(bench.engine) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    table = bench.stock.get_input_embeddings().weight
    assert (
        weight_bytes(bench.engine)
        == sum(value.nbytes for value in bench.stock.parameters()) - table.nbytes - bench.stock.model.norm.weight.nbytes
    )


def test_dropped_files_are_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(b"a" * 10_000)
    (tmp_path / "b").write_bytes(b"b" * 3)
    (tmp_path / "empty").touch()
    files = files_of(tmp_path)
    assert [path.name for path in files] == ["b", "a"]
    before = share_resident(files)
    drop_pages(files)
    assert share_resident(files) <= before  # 0 where the file system lies on a disk
    assert read_all(files) == 10_003
    assert share_resident(files) == before == 1


class KeepsAll:
    """A press that keeps the slots it is asked for by cutting the end of the cache off."""

    def __init__(self, compression_ratio: float) -> None:
        self.share = 1 - compression_ratio

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        def cut(_: Any, __: Any, kwargs: dict[str, Any], ___: Any) -> None:
            cache = kwargs["past_key_values"]
            cache.crop(int(cache.get_seq_length() * self.share) - cache.get_seq_length())

        handle = model.register_forward_hook(cut, with_kwargs=True)
        yield
        handle.remove()


@torch.inference_mode()
def test_what_runs_beside_kvpress_decodes_behind_as_many_slots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("kvpress")
    module.KnormPress = KeepsAll
    monkeypatch.setitem(sys.modules, "kvpress", module)
    sizes = {"batch": 2, "tokens": 40, "slots": 5, "n_new": 2, "rounds": 3, "presses": ["knorm"]}
    about = {"dtype": "float32", "device": "cpu", "threads": torch.get_num_threads()}
    asked = json.loads(json.dumps({"config": bench.engine.model.config.to_dict(), **about, **sizes}))
    times = kvpress_decode.measure(asked)
    assert {name: len(taken) for name, taken in times.items()} == {"knorm": 3, "plain": 3}
    monkeypatch.setattr(KeepsAll, "__init__", lambda self, compression_ratio: setattr(self, "share", 0.5))
    with pytest.raises(SystemExit, match="knorm kept 20 slots instead of 5"):
        kvpress_decode.measure(asked)


def test_a_failing_environment_is_told_with_its_last_words(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAGIST_PEERS_PYTHON", sys.executable)
    with pytest.raises(UltraGistError, match="stopped with status 1: KeyError: 'batch'"):
        decode_there(bench, {})
    monkeypatch.setenv("ULTRAGIST_PEERS_PYTHON", "/nowhere")
    with pytest.raises(UltraGistError, match="is no file"):
        decode_there(bench, {})
