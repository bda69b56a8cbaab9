"""A run that is stopped and resumed is the run that was not; what it saves is what it trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ultragist_rag import UltraGist
from ultragist_rag.config import GistConfig
from ultragist_rag.errors import TrainingError
from ultragist_rag.training.batches import Row
from ultragist_rag.training.checkpoint import mix_in
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.loop import Trainer


def _weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output / "state" / "weights.safetensors")


def _losses(config: TrainConfig) -> list[float]:
    lines = (config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_resumed_run_computes_the_numbers_of_an_unbroken_one(tiny_run: TrainConfig) -> None:
    unbroken = tiny_run.model_copy(update={"output": tiny_run.output / "unbroken"})
    broken = tiny_run.model_copy(update={"output": tiny_run.output / "broken"})
    Trainer(unbroken).run()
    for _ in range(2):
        Trainer(broken).run(stop_after=3)
    assert _losses(unbroken) == _losses(broken)
    one, other = _weights(unbroken), _weights(broken)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(_losses(broken)) == broken.n_steps


def test_a_stage_that_keeps_a_share_ends_between_the_weights_before_and_behind_it(tiny_run: TrainConfig) -> None:
    first, second = tiny_run.stages
    keeping = (first, second.model_copy(update={"keep": 0.25}))
    plain, kept, broken = (
        tiny_run.model_copy(update={"output": tiny_run.output / name, "stages": stages})
        for name, stages in (("plain", tiny_run.stages), ("kept", keeping), ("broken", keeping))
    )
    Trainer(plain).run(stop_after=first.steps + 1)
    Trainer(kept).run(stop_after=first.steps)
    before = _weights(kept)
    Trainer(plain).run()
    Trainer(kept).run()
    behind, found = _weights(plain), _weights(kept)
    gist = {name for name in found if "ultragist" in name}  # they begin anew where the second stage does
    for name in found.keys() - gist:
        torch.testing.assert_close(found[name], 0.25 * before[name] + 0.75 * behind[name])
    assert any(not torch.allclose(found[name], behind[name]) for name in gist)
    for steps in (first.steps + 1, None):
        Trainer(broken).run(stop_after=steps)
    again = _weights(broken)
    assert all(torch.equal(found[name], again[name]) for name in found)
    (file,) = broken.output.glob("before*")
    file.write_bytes(b"{")
    with pytest.raises(TrainingError, match="weights before this stage"):
        mix_in(file, {}, 0.5)


def test_a_stage_that_begins_to_keep_a_share_half_way_is_refused(tiny_run: TrainConfig) -> None:
    first, second = tiny_run.stages
    Trainer(tiny_run).run(stop_after=first.steps + 1)
    keeping = tiny_run.model_copy(update={"stages": (first, second.model_copy(update={"keep": 0.25}))})
    with pytest.raises(TrainingError, match="begun without"):
        Trainer(keeping).run()


OBJECTIVES = [
    pytest.param({"modes": {"independent": 1.0}, "autoencoding": 0.5}, id="autoencoding"),
    pytest.param({"modes": {"joint": 1.0}, "token_importance": 1.0}, id="importance"),
    pytest.param({"modes": {"stream": 1.0}, "autoencoding": 0.5, "token_importance": 0.7}, id="both, on streams"),
]


@pytest.mark.parametrize("keys", OBJECTIVES)
def test_a_resumed_run_is_the_unbroken_one_with_every_objective(tiny_run: TrainConfig, keys: dict[str, object]) -> None:
    stage = tiny_run.stages[1].model_copy(update={"steps": 3, **keys})
    more = {"stages": (stage,), "accumulate": 2, "gradient_checkpointing": True, "autoencoding_gists": 5}
    unbroken, broken, plain = (
        tiny_run.model_copy(update={**more, "output": tiny_run.output / name}) for name in ("one", "two", "plain")
    )
    Trainer(unbroken).run()
    Trainer(broken).run(stop_after=1)
    Trainer(broken).run()
    assert _losses(unbroken) == _losses(broken)
    one, other = _weights(unbroken), _weights(broken)
    assert all(torch.equal(one[name], other[name]) for name in one)
    decoder = {name for name in one if name.startswith("autoencoder.")}
    assert bool(decoder) == bool(stage.autoencoding)
    saved = load_file(broken.output / "model" / "model.safetensors")
    assert not any("autoencoder" in name for name in saved)
    entry = json.loads((broken.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (entry.get("autoencoding", 0) > 0) == bool(stage.autoencoding)
    plain_stage = stage.model_copy(update={"autoencoding": 0.0, "token_importance": 0.0})
    Trainer(plain.model_copy(update={"stages": (plain_stage,)})).run()
    assert _losses(plain) != _losses(broken)


def test_accumulated_batches_give_the_step_of_their_union(tiny_run: TrainConfig) -> None:
    stage = tiny_run.stages[1].model_copy(update={"modes": {"independent": 1.0}, "windows": (16,), "ratios": (4,)})
    stage = stage.model_copy(update={"raw_share": 0.0, "steps": 1})
    more = {"stages": (stage,), "optimizer": "adamw", "checkpoint_every": 1}
    ends = []
    for number, accumulate in enumerate((2, 1)):
        config = tiny_run.model_copy(
            update={**more, "accumulate": accumulate, "output": tiny_run.output / str(accumulate)}
        )
        trainer = Trainer(config)
        drawn = [row for n in range(8) for row in trainer.drawn.rows_of(stage, n)]
        first = next(row for row in drawn if row.separators[-1])
        other = next(row for row in drawn if row.separators[-1] and row.documents != first.documents)
        pair = [first, Row(other.documents, other.separators, first.turns, first.weights)]
        trainer.drawn.rows_of = (lambda _, n, pair=pair: [pair[n]]) if not number else (lambda _, __, pair=pair: pair)  # type: ignore[assignment]
        trainer.run()
        ends.append((_losses(config), _weights(config)))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-5)
    assert all(torch.allclose(ends[0][1][name], ends[1][1][name], atol=2e-5) for name in ends[0][1])


@pytest.mark.parametrize("name", ["fine-kv-step-expansion", "coarse-recurrent"])
def test_the_saved_model_is_the_trained_one_and_its_base_a_plain_folder(tiny_run: TrainConfig, name: str) -> None:
    tiny_run = tiny_run.model_copy(update={"gist": {**tiny_run.gist, **ARCHITECTURES[name]}})
    folder = Trainer(tiny_run).run()
    trained = {name: value.to(torch.bfloat16) for name, value in _weights(tiny_run).items()}
    engine = UltraGist.from_pretrained(folder)
    for name, value in engine.gist_parameters().items():
        assert torch.equal(value.to(torch.bfloat16), trained[name])
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(base.model.embed_tokens.weight.to(torch.bfloat16), trained["model.embed_tokens.weight"])
    before = AutoModelForCausalLM.from_pretrained(tiny_run.output / "base")
    assert before.config.vocab_size == base.config.vocab_size
    assert engine.lead_token == engine.tokenizer.bos_token_id


def test_a_frozen_base_stays_bit_for_bit(tiny_run: TrainConfig, tmp_path: Path) -> None:
    first = Trainer(tiny_run.model_copy(update={"stages": tiny_run.stages[:1]})).run()
    stage = tiny_run.stages[1].model_copy(update={"modes": {"independent": 1.0, "joint": 1.0}})
    frozen = tiny_run.model_copy(
        update={"base": str(first), "train_base": False, "output": tmp_path / "frozen", "stages": (stage,)}
    )
    trainer = Trainer(frozen)
    before = {name: value.clone() for name, value in trainer.attachment.model.state_dict().items()}
    folder = trainer.run()
    assert not (folder / "model.safetensors").exists()
    with torch.no_grad():
        trainer.attachment.model.float()
    after = trainer.attachment.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("ultragist" in name for name in moved)
    again = UltraGist.from_pretrained(folder)
    for name, value in trainer.attachment.parameters().items():
        assert torch.equal(again.gist_parameters()[name].float(), value)


def test_a_damaged_or_foreign_state_is_refused(tiny_run: TrainConfig) -> None:
    Trainer(tiny_run).run(stop_after=2)
    with pytest.raises(TrainingError, match="other settings"):
        Trainer(tiny_run.model_copy(update={"lr": 0.5})).run()
    weights = tiny_run.output / "state" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrainingError, match="damaged"):
        Trainer(tiny_run).run()
    assert weights.stat().st_size == 100


def test_gist_parameters_begin_as_copies_of_the_trained_base(tiny_run: TrainConfig) -> None:
    trainer = Trainer(tiny_run.model_copy(update={"lr": 1e-12, "warmup": 0}))
    trainer.run(stop_after=3)
    attention = trainer.attachment.layers[0]
    gap = (attention.ultragist_k_proj.weight - attention.k_proj.weight).abs().max().item()
    assert gap < 1e-6


@pytest.mark.parametrize("name", ["bundled", "llama-3.1-8b"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    config = TrainConfig.read(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert config.lr_at(0) < config.lr_at(config.warmup)
    assert config.lr_at(config.n_steps - 1) < config.lr


def test_the_bundled_model_is_what_its_config_makes() -> None:
    config = TrainConfig.read(Path(__file__).parents[2] / "configs" / "bundled.yaml")
    bundled = UltraGist.from_pretrained("bundled")
    assert bundled.config == GistConfig.from_dict(config.gist)
    assert bundled.source_bias == config.source_bias > 0
    assert {name: getattr(bundled.model.config, name) for name in config.model} == config.model


@pytest.mark.parametrize(("asked", "kept"), [(None, 2.5), (0, 0), (4, 4)])
def test_the_result_holds_answers_as_the_config_says_or_else_as_the_base_did(
    asked: float | None, kept: float, model_folders: tuple[Path, Path], tiny_run: TrainConfig, tmp_path: Path
) -> None:
    config = shutil.copytree(model_folders[0], tmp_path / "base") / "ultragist_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "source_bias": 2.5}), "utf-8")
    run = tiny_run.model_copy(update={"base": str(tmp_path / "base"), "source_bias": asked})
    trainer = Trainer(run)
    assert UltraGist.from_pretrained(trainer.save()).source_bias == kept
    assert trainer._note() == Trainer(run.model_copy(update={"source_bias": 1}))._note()


def test_a_stage_may_move_its_rate_evenly_and_no_rate_is_negative(tiny_run: TrainConfig) -> None:
    stage = tiny_run.stages[1].model_copy(update={"lr": (0.008, 0.004)})
    config = tiny_run.model_copy(update={"stages": (tiny_run.stages[0], stage), "decay": 0.0, "warmup": 0})
    rates = [config.lr_at(step) for step in range(2, 5)]
    assert rates == pytest.approx([0.008, 0.007, 0.006])
    with pytest.raises(ValidationError, match="lr"):
        Stage(**{**stage.model_dump(), "lr": (0.008, -0.004)})


def test_the_hub_config_runs_dry_on_a_small_stand_in(tiny_run: TrainConfig, tmp_path: Path) -> None:
    Trainer(tiny_run).run()
    base = tiny_run.output / "base"
    data = tmp_path / "own.jsonl"
    lines = [{"text": "Some words that go on. " * 40}] * 4
    lines += [{"documents": ["The door is red. " * 20, "The roof is blue."], "pairs": [["The door?", "red"]]}] * 4
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shipped = TrainConfig.read(Path(__file__).parents[2] / "configs" / "llama-3.1-8b.yaml")
    stages = [stage.model_copy(update={"tokens": 300, "max_chars": 400, "windows": ()}) for stage in shipped.stages]
    small = {"base": str(base), "data": data, "output": tmp_path / "out", "longest": 600}
    small |= {"mixed_precision": "no", "dtype": "float32"}
    gist = {**shipped.gist, "window": 32, "rank": 2}
    report = Trainer(shipped.model_copy(update={**small, "gist": gist, "stages": tuple(stages)})).dry_run()
    assert 0 < report.n_trained < report.n_parameters / 4
    assert report.n_steps == shipped.n_steps


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("output: a\ndata: b\nlearning_rate: 3\nstages: []\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"learning_rate.*stages|stages.*learning_rate"):
        TrainConfig.read(path)
    path.write_text(
        "output: a\ndata: b\ntrain_base: false\nstages: [{name: s, steps: 1, tokens: 9, kinds: {text: 1}}]\n",
        encoding="utf-8",
    )
    with pytest.raises(TrainingError, match="mode full"):
        TrainConfig.read(path)
    with pytest.raises(TrainingError, match="cannot be read"):
        TrainConfig.read(tmp_path / "missing.yaml")


@pytest.mark.parametrize("change", [{"one_pass": False}, {"modes": {"stream": 1.0}}])
def test_a_teacher_that_would_be_left_out_is_refused(tiny_run: TrainConfig, change: dict[str, object]) -> None:
    stage = tiny_run.stages[1].model_copy(update={"distil": 1.0, **change})
    with pytest.raises(TrainingError, match=r"distil 1\.0, which needs all windows in one pass"):
        Trainer(tiny_run.model_copy(update={"stages": (stage,)}))


def test_a_run_out_of_time_stops_with_its_state_and_goes_on_to_the_same_numbers(tiny_run: TrainConfig) -> None:
    unbroken, timed = (tiny_run.model_copy(update={"output": tiny_run.output / name}) for name in ("one", "two"))
    Trainer(unbroken).run()
    stopped = Trainer(timed).run(deadline=0.0)
    assert stopped == timed.output / "state"
    assert len(_losses(timed)) == 1
    Trainer(timed).run()
    assert _losses(timed) == _losses(unbroken)
