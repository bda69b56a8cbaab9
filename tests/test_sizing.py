"""Sizes counted before there is a file are those of the files that the store writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from ultragist_rag import UltraGist
from ultragist_rag.cli import app
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.sizing import (
    GROUPS,
    KINDS,
    MODELS,
    N_METADATA,
    PER_TOKEN,
    RATIOS,
    ModelShape,
    bundled_shape,
    n_file_bytes,
    n_groups,
    size_rows,
    sizes,
    tensor_table,
)
from ultragist_rag.store import GistStore
from ultragist_rag.store.codec import encode


def n_metadata(data: bytes) -> int:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return len(json.dumps(header["__metadata__"], separators=(",", ":")))


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("n_chars", [1, 37, 300])
def test_a_file_has_the_bytes_that_were_counted(text_engine: Any, kind: str | None, n_chars: int) -> None:
    memory = text_engine.compress("0123456789" * 30, ratio=2) if n_chars == 300 else text_engine.compress("x" * n_chars)
    data = encode(memory, key=b"key", name="a" * 26, stored=1_700_000_000.0, quantise=kind)
    layers = [(tensor.shape[1], tensor.shape[3]) for tensor in memory.keys]
    table = tensor_table(layers, memory.slots, kind or "F32")
    assert n_file_bytes(table, n_metadata(data)) == len(data)


def test_the_command_counts_what_a_store_writes_but_for_its_settings(text_engine: Any) -> None:
    text = "word " * 12
    store = GistStore.open("memory://", secret="a secret of the tests")
    layers, heads, head_dim = len(text_engine.compress(text).keys), *text_engine.compress(text).keys[0].shape[1::2]
    shape = ModelShape("tiny", layers, heads, head_dim)
    for ratio in (2, 4):
        memory: GistMemory = text_engine.compress(text, ratio=ratio)
        (size,) = sizes(len(text), [shape], [ratio])
        assert size.slots == memory.slots
        for kind in KINDS:
            data = encode(memory, name="a" * 26, stored=1_700_000_000.0, quantise=kind)
            n_counted = N_METADATA + PER_TOKEN * len(text)
            assert abs(size.n_bytes[kind] - len(data)) <= abs(n_counted - n_metadata(data)) + 8
            assert n_counted * 0.6 < n_metadata(data) < n_counted * 1.4
    assert len(store) == 0


def test_the_bundled_model_is_listed_as_it_is() -> None:
    engine = UltraGist.from_pretrained("bundled")
    text = "The capital of Chad is N'Djamena. " * 8
    memory = engine.compress(text, ratio=4).seal()  # as stores do
    (size,) = sizes(memory.n_source_tokens, [bundled_shape()], [4])
    assert len(memory.keys) == size.model.n_layers
    assert {keys.shape for keys in memory.keys} == {(1, size.model.kv_heads, size.slots, size.model.head_dim)}
    data = encode(memory, name="a" * 26, stored=1_700_000_000.0, quantise="int8")
    assert abs(size.n_bytes["int8"] - len(data)) < 128
    assert sizes(1)[0].model == size.model


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_no_longer_than_allowed_and_as_few_as_can_be(kind: Any) -> None:
    for count in range(300):
        groups = n_groups(count, kind)
        assert groups * GROUPS[kind] >= count
        assert (groups - 1) * GROUPS[kind] < count


def test_tensors_lie_side_by_side_and_numbers_of_two_bytes_on_even_places() -> None:
    for slots in range(8):
        table = tensor_table([(3, 7), (1, 5)], slots, "int4")
        stop = 0
        for entry in table.values():
            assert entry["data_offsets"][0] == stop
            assert entry["dtype"] == "U8" or stop % 2 == 0
            stop = entry["data_offsets"][1]


def test_the_command_prints_every_model_ratio_and_format() -> None:
    shown = CliRunner().invoke(app, ["sizing"])
    assert shown.exit_code == 0, shown.output
    for word in ("Llama-2-7B", "Qwen3-8B", "bfloat16", "int8", "int4", "KiB"):
        assert word in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["sizing", "--json", "--tokens", "1000"]).stdout)
    assert told["tokens"] == 1000
    assert len(told["sizes"]) == (1 + len(MODELS)) * len(RATIOS)
    for size in told["sizes"]:
        exact, eight, four = size["n_bytes"].values()
        assert four < eight < exact
        model = size["model"]
        raw = 2 * 2 * model["n_layers"] * model["kv_heads"] * model["head_dim"] * size["slots"]
        assert raw < exact < raw + 16_384
    assert CliRunner().invoke(app, ["sizing", "--tokens", "0"]).exit_code == 2


def test_rows_show_each_model_once_and_its_kib() -> None:
    head, *rows = size_rows(sizes(512, MODELS[:2], (4, 8)))
    assert head[3:] == ["ratio 4 (128 slots)", "ratio 8 (64 slots)"]
    assert [row[:3] for row in rows[:2]] == [["Llama-3.2-1B", "16 x 8 x 64", "bfloat16"], ["", "", "int8"]]
    assert [row[0] for row in rows[3:5]] == ["Qwen2.5-1.5B", ""]
    assert float(rows[0][3].replace(",", "")) == round(sizes(512)[4].n_bytes["bfloat16"] / 1024, 1)
