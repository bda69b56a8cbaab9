"""A record counts the lines of a run, names the data's sources, and is read as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.loop import Trainer
from ultragist_rag.training.record import TrainingRecord, training_record
from ultragist_rag.training.sources import DATA_SETS, data_set

FILES = ["train/factbook.jsonl.xz", "train/wikipedia-00.jsonl.xz"]


@pytest.fixture
def config_file(tiny_run: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(json.loads(tiny_run.model_dump_json(exclude_defaults=True))), "utf-8")
    return path


def test_the_record_of_a_run_says_what_its_lines_say(tiny_run: TrainConfig, config_file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_run)
    metrics = tiny_run.output / "metrics.jsonl"
    trainer.run(stop_after=3)
    with pytest.raises(TrainingError, match="1 steps of stage 'remember'"):
        training_record(config_file, metrics, FILES, "a machine")
    Trainer(tiny_run).run()
    record = training_record(config_file, metrics, FILES, "a machine", {"torch": "1"})
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    assert (record.steps, record.tokens) == (len(lines), sum(line["tokens"] for line in lines))
    assert record.seconds == pytest.approx(sum(line["seconds"] for line in lines), abs=0.1)
    assert [stage.name for stage in record.stages] == [stage.name for stage in tiny_run.stages]
    for stage in record.stages:
        of_stage = [line for line in lines if line["stage"] == stage.name]
        assert (stage.steps, stage.tokens) == (len(of_stage), sum(line["tokens"] for line in of_stage))
    assert [bool(stage.ratios) for stage in record.stages] == [False, True]
    assert (record.config, record.seed, record.versions) == ("tiny.yaml", tiny_run.seed, {"torch": "1"})
    assert [one.licence for one in record.files] == [data_set(file).licence for file in FILES]
    record.write(tmp_path / "record.json")
    assert TrainingRecord.read(tmp_path / "record.json") == record


def test_shards_and_endings_do_not_matter() -> None:
    for name in DATA_SETS:
        for end in ("", "-00", ".jsonl", "-03.jsonl.xz"):
            assert data_set(name + end) == DATA_SETS[name]
    with pytest.raises(TrainingError, match="sources and their licences"):
        data_set("train/found-somewhere.jsonl")


def test_what_is_no_run_or_no_record_is_refused(config_file: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    for text in (None, "no json\n", '{"step": 0}\n', "3\n"):
        if text is not None:
            metrics.write_text(text, "utf-8")
        with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be read"):
            training_record(config_file, metrics, FILES, "a machine")
    with pytest.raises(TrainingError, match="no record"):
        TrainingRecord.read(tmp_path / "none.json")
    (tmp_path / "wrong.json").write_text('{"steps": 3}', "utf-8")
    with pytest.raises(TrainingError, match="no record"):
        TrainingRecord.read(tmp_path / "wrong.json")
