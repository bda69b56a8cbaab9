from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.flops import compress_flops, prefill_flops
from benchmarks.record import Record, Spread, read_records
from benchmarks.run import make_bench, run_suite, run_suites
from benchmarks.shapes import SHAPES, build_engine
from benchmarks.suite import Bench
from benchmarks.suites import SUITES
from ultragist_rag import UltraGist

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return make_bench(SHAPES["tiny"], CPU, torch.float32, "minimal")


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_gives_positive_rows_on_a_tiny_model(name: str, bench: Bench) -> None:
    record = run_suite(SUITES[name], bench)
    assert Record.from_json(record.to_json()) == record
    assert record.rows
    names = {bar.name for bar in SUITES[name].bars}
    for row in record.rows:
        numbers = [spread for spread in (row.value, row.ratio) if spread is not None]
        assert all(spread.least > 0 for spread in numbers)
        assert row.settings
        assert row.bar in names | {""}
    assert all(bar.means(record.machine, "tiny") is False for bar in SUITES[name].bars)


def test_suites_run_where_little_is_installed() -> None:
    absent = ("bm25s", "datasets", "faiss", "langchain_core", "llama_index", "matplotlib", "platformdirs", "pydantic")
    blocked = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import benchmarks.run, benchmarks.suites"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_called_like_its_file_and_its_bars_have_one_limit(name: str) -> None:
    suite = SUITES[name]
    assert (Path(__file__).parents[2] / "benchmarks" / "suites" / f"{name}.py").is_file()
    assert [
        bar for bar in suite.bars if (bar.at_least is None) == (bar.at_most is None) or bar.shape not in SHAPES
    ] == []
    assert len({one.order for one in SUITES.values()}) == len(SUITES)


def test_a_suite_that_fails_leaves_the_files_of_others(bench: Bench, tmp_path: Path) -> None:
    from dataclasses import replace

    broken = replace(SUITES["compress"], name="broken", measure=lambda _: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        run_suites([SUITES["compress"], broken], bench, tmp_path)
    assert [record.suite for record in read_records(tmp_path)] == ["compress"]


def test_the_plain_model_is_the_same_without_hooks(bench: Bench) -> None:
    ids, engine, plain = bench.ids(2, 9), bench.engine, bench.stock
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, engine.model(input_ids=ids).logits)
    assert plain.lm_head.weight.data_ptr() == engine.model.lm_head.weight.data_ptr()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())
    assert not any("ultragist" in name for name, _ in plain.named_modules())


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.family])
def test_shapes_are_of_their_models(name: str) -> None:
    sizes = {"llama-3-8b": 8_030_261_248, "qwen2-7b": 7_615_616_512, "tiny": None}
    import transformers

    shape = SHAPES[name]
    config = getattr(transformers, f"{shape.family}Config")(tie_word_embeddings=False, **shape.settings)
    with torch.device("meta"):
        model: Any = getattr(transformers, f"{shape.family}ForCausalLM")(config)
    assert sizes[name] in (None, sum(value.numel() for value in model.parameters()))


def test_the_bundled_shape_has_positions_for_every_suite() -> None:
    engine = build_engine(SHAPES["bundled"], CPU, torch.float32, ratio=8)
    assert engine.max_positions >= 1 << 17
    assert engine.config.ratio == 8
    assert engine.config.window == UltraGist.from_pretrained("bundled").config.window


@pytest.mark.parametrize("n_tokens", [1, 7, 32, 33, 100])
@pytest.mark.parametrize("ratio", [2, 8])
def test_work_is_counted_as_a_loop_over_tokens_would(bench: Bench, n_tokens: int, ratio: int) -> None:
    engine, window = bench.engine, bench.engine.config.window
    one, two = prefill_flops(engine, 1), prefill_flops(engine, 2)
    per_key = two - 2 * one  # the second token sees one key more than the first
    per_token = one - per_key
    seen = [place % window + 1 + place // window * window // ratio for place in range(n_tokens)]
    assert compress_flops(engine, n_tokens, ratio) == per_token * n_tokens + per_key * sum(seen)
    assert prefill_flops(engine, n_tokens) == per_token * n_tokens + per_key * sum(range(1, n_tokens + 1))


def test_work_of_the_layers_is_what_torch_counts(bench: Bench) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bench.stock.model(input_ids=bench.ids(1, 16), use_cache=False)
    counted = counter.get_flop_counts()["Global"]
    per_key = prefill_flops(bench.engine, 2) - 2 * prefill_flops(bench.engine, 1)
    assert counted.pop(torch.ops.aten.mm) == prefill_flops(bench.engine, 16) - per_key * 16 * 17 // 2
    others = sum(counted.values())  # if torch counts attention, then hidden keys too; and angles of positions
    assert others == 0 or 0 <= others - per_key * 16 * 16 < 0.01 * others


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--suite", "none", "--model-shape", "tiny"], "Known are compress"),
        (["--suite", "compress", "--model-shape", "none"], "Known are llama-3-8b, qwen2-7b, bundled, tiny."),
        (["--suite", "compress", "--model-shape", "tiny", "--device", "tpu"], "Known are auto, cpu, cuda."),
        (["--suite", "compress", "--model-shape", "tiny", "--dtype", "int8"], "Known are auto, bfloat16"),
    ],
)
def test_unknown_names_are_refused(arguments: list[str], known: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", *arguments, "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert known in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_commands_measure_and_report(tmp_path: Path) -> None:
    run = ["run", "--suite", "compress", "--model-shape", "tiny", "--device", "cpu", "--output", str(tmp_path)]
    assert CliRunner().invoke(app, run).exit_code == 0
    page = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["report", "--results", str(tmp_path), "--page", str(page)])
    assert done.exit_code == 0, done.output
    assert "### CPU, tiny" in page.read_text("utf-8")


def test_of_rows_that_name_a_bar_the_right_one_counts() -> None:
    from samples import sample_record

    from benchmarks.suites.compress import CPU_BAR, GPU_BAR

    rows = sample_record().rows
    better = CPU_BAR.judge(type(rows[0])(**{**_fields(rows[0]), "ratio": Spread.of([2.0])}))
    assert better.met
    assert CPU_BAR.chosen([*rows, better]) == rows[0]
    shares = [GPU_BAR.judge(row) for row in rows if row.floor]
    assert GPU_BAR.chosen(shares) == max(shares, key=lambda row: row.share or 0)
    assert not any(row.met for row in shares)


def _fields(row: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {field.name: getattr(row, field.name) for field in fields(row)}
