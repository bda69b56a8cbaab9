"""What a dry run counts is what a run has; what is worked out from a shape alone is what is counted on the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from ultragist_rag.cli import app
from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.forecast import forecast
from ultragist_rag.training.loop import Trainer
from ultragist_rag.training.report import report_lines

COUNTED = ("n_parameters", "n_trained", "n_steps", "n_tokens", "stage_tokens")
BYTES = ("weight_bytes", "gradient_bytes", "optimizer_bytes")


def _bytes(path: Path, *, of_steps: bool) -> int:
    tensors = load_file(path).items()
    return sum(t.numel() * t.element_size() for name, t in tensors if name.endswith(".step") == of_steps)


@pytest.fixture
def autoencoding_run(tiny_run: TrainConfig) -> TrainConfig:
    read, remember = tiny_run.stages
    stages = (read, remember.model_copy(update={"autoencoding": 0.1}))
    # The last layer's gists need no queries and outputs of their own, so these get no moments.
    gist = {**tiny_run.gist, "projections": "kv"}
    return tiny_run.model_copy(update={"stages": stages, "accumulate": 2, "gist": gist})


def test_counted_bytes_are_those_of_the_checkpoint(autoencoding_run: TrainConfig) -> None:
    report = Trainer(autoencoding_run).dry_run()
    Trainer(autoencoding_run).run()
    state = autoencoding_run.output / "state"
    assert report.gradient_bytes == _bytes(state / "weights.safetensors", of_steps=False)
    moments = [_bytes(state / f"optimizer{number}.safetensors", of_steps=False) for number in range(2)]
    assert report.optimizer_bytes == sum(moments)
    assert report.n_parameters == report.n_trained
    assert report.n_tokens == 2 * 6 * 400
    assert {(entry.stage, entry.mode) for entry in report.batches} == {
        (stage.name, mode) for stage in autoencoding_run.stages for mode in stage.modes
    }
    expected = sum(stage.steps * report.step_seconds[stage.name] for stage in autoencoding_run.stages) / 3600
    assert report.hours == pytest.approx(expected)
    # A step has two batches, whose modes are drawn evenly in the second stage.
    later = [entry.seconds for entry in report.batches if entry.stage == "remember"]
    assert report.step_seconds["remember"] == pytest.approx(2 * sum(later) / 3)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
def test_larger_batches_take_more_memory(tiny_run: TrainConfig) -> None:
    stage = tiny_run.stages[0].model_copy(update={"tokens": 40_000})
    large = tiny_run.model_copy(update={"stages": (stage,), "output": tiny_run.output / "large"})
    Trainer(tiny_run).dry_run()  # what is loaded once counts as growth, too
    small, more = (Trainer(config).dry_run().activation_bytes for config in (tiny_run, large))
    assert small is not None
    assert more is not None
    assert more > 4 * 20_000 * 400 > small  # the logits of half the tokens alone


@pytest.mark.parametrize("tied", [True, False])
def test_a_forecast_counts_what_the_model_has(autoencoding_run: TrainConfig, tied: bool) -> None:
    model = {**autoencoding_run.model, "tie_word_embeddings": tied, "vocab_size": 400}
    config = autoencoding_run.model_copy(update={"model": model})
    counted, worked_out = Trainer(config).dry_run(), forecast(config, 2.0)
    for name in (*COUNTED, *BYTES):
        assert getattr(worked_out, name) == getattr(counted, name), name
    assert worked_out.flops == 6 * counted.n_parameters * counted.n_tokens
    assert worked_out.hours == pytest.approx(worked_out.flops / 2e12 / 3600)


def test_a_forecast_needs_of_a_base_its_config_alone(tiny_run: TrainConfig, tmp_path: Path) -> None:
    Trainer(tiny_run.model_copy(update={"output": tmp_path / "first"})).run(stop_after=3)
    base = tmp_path / "first" / "base"
    stage = tiny_run.stages[1].model_copy(update={"modes": {"independent": 1.0}})
    update = {"base": str(base), "train_base": False, "stages": (stage,), "gist": {"window": 32, "rank": 2}}
    config = tiny_run.model_copy(update={**update, "dtype": "bfloat16", "optimizer": "adamw"})
    counted = Trainer(config).dry_run()
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_bytes((base / "config.json").read_bytes())
    shape = config.model_copy(update={"base": str(tmp_path / "shape"), "data": tmp_path / "no-data"})
    worked_out = forecast(shape, 1.0)
    for name in (*COUNTED, *BYTES):
        assert getattr(worked_out, name) == getattr(counted, name), name
    checkpointed = forecast(shape.model_copy(update={"gradient_checkpointing": True}), 1.0)
    assert checkpointed.activation_bytes < worked_out.activation_bytes
    with pytest.raises(TrainingError, match=r"config\.json of .*nowhere"):
        forecast(config.model_copy(update={"base": str(tmp_path / "nowhere")}), 1.0)
    with pytest.raises(TrainingError, match="tflops is 0"):
        forecast(shape, 0.0)


def test_the_command_says_how_it_came_by_each_figure(tiny_run: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(tiny_run.model_dump_json(), encoding="utf-8")
    measured = CliRunner().invoke(app, ["train", "--config", str(path), "--dry-run"])
    assert measured.exit_code == 0, measured.output
    assert {line.split("  ")[0] for line in measured.stdout.splitlines()} == {"counted", "measured", "worked out"}
    settings = ["train", "--config", str(path), "--tflops", "5"]
    worked_out = CliRunner().invoke(app, [*settings, "--dry-run"])
    assert worked_out.stdout.splitlines() == report_lines(forecast(tiny_run, 5.0))
    told = json.loads(CliRunner().invoke(app, [*settings, "--dry-run", "--json"]).stdout)
    assert told["n_trained"] == forecast(tiny_run, 5.0).n_trained
    refused = CliRunner().invoke(app, settings)
    assert refused.exit_code == 2
    assert "--dry-run" in refused.stderr
    assert not (tiny_run.output / "state").exists()
