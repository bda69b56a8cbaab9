"""Two processes that share each batch compute the numbers of one; what they save is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from ultragist_rag import UltraGist
from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.drawing import Drawn
from ultragist_rag.training.loop import Trainer
from ultragist_rag.training.processes import check_sharding

ROOT = Path(__file__).parents[2]


def _train(config: TrainConfig, kind: str, stop_after: int) -> None:
    path = config.output.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).with_name("in_processes.py")), str(path), kind, str(stop_after)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        _, told = run.communicate(timeout=120)
    finally:
        run.terminate()  # torchrun ends its workers, which would wait for each other for ever
    assert run.returncode == 0, told[-4000:]


def _metrics(config: TrainConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_compute_the_numbers_of_one(tiny_run: TrainConfig, kind: str, optimizer: str) -> None:
    read, remember = tiny_run.stages
    # Nothing is drawn within a batch, since each process would draw for its own rows.
    same = {
        "steps": 3,
        "ratios": (4,),
        "windows": (16,),
        "raw_share": 0.0,
        "token_importance": 0.5,
        "autoencoding": 1e-7,
    }
    stages = (read, remember.model_copy(update=same))
    update = {"stages": stages, "optimizer": optimizer, "accumulate": 2, "autoencoding_gists": 10_000}
    shared = tiny_run.model_copy(update=update)
    one, two = (shared.model_copy(update={"output": tiny_run.output / name}) for name in ("one", "two"))
    folder = Trainer(one).run()
    Trainer(two).run(stop_after=1)
    _train(two, kind, 2)
    _train(two, kind, 9)
    alone, together = _metrics(one), _metrics(two)
    assert len(together) == one.n_steps
    for key in ("loss", "answer", "norm", "tokens"):
        assert [entry[key] for entry in together] == pytest.approx([entry[key] for entry in alone], rel=1e-3), key
    mine, theirs = (load_file(config.output / "state" / "weights.safetensors") for config in (one, two))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], atol=2e-4), name
    saved, expected = UltraGist.from_pretrained(two.output / "model"), UltraGist.from_pretrained(folder)
    for name, value in expected.gist_parameters().items():
        assert torch.allclose(value, saved.gist_parameters()[name], atol=1e-2), name
    assert (two.output / "base" / "model.safetensors").is_file()


def _process(index: int, plugin: object = None) -> SimpleNamespace:
    return SimpleNamespace(process_index=index, num_processes=3, state=SimpleNamespace(fsdp_plugin=plugin))


def test_processes_share_a_batch_without_overlap(tiny_run: TrainConfig) -> None:
    trainer = Trainer(tiny_run)
    stage = tiny_run.stages[1].model_copy(update={"one_pass": False, "modes": {"independent": 1.0}})
    whole = Drawn(tiny_run, trainer.source, trainer.rows, trainer.attachment, trainer._lead())
    parts = [
        Drawn(tiny_run, trainer.source, trainer.rows, trainer.attachment, trainer._lead(), (index, 3))
        for index in range(3)
    ]
    shares = [part.batch(stage, 0) for part in parts]
    rows = whole.batch(stage, 0).rows
    assert sorted(row.turns for share in shares if share.counts for row in share.rows) == sorted(r.turns for r in rows)
    assert {share.n_tokens for share in shares} == {whole.batch(stage, 0).n_tokens}
    lonely = parts[2].batch(stage, 0, most=1)
    assert lonely.rows == rows[:1]
    assert not lonely.counts


def test_sharding_that_would_hang_is_refused() -> None:
    from accelerate import FullyShardedDataParallelPlugin

    check_sharding(_process(0))
    check_sharding(_process(0, FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")))
    layers = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    with pytest.raises(TrainingError, match="NO_WRAP"):
        check_sharding(_process(0, layers))
    with pytest.raises(TrainingError, match="version 1"):
        check_sharding(_process(0, SimpleNamespace(fsdp_version=1)))
