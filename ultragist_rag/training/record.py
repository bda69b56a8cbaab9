"""Keep what a training run did, so that a model card can tell it.

Is        the schema of the record, its reader and writer, and how it is made from the folder of a run.
Flow      config, sources -> [record] -> evaluation.card.
Change    what a record tells.
Not here  the lines that a run writes -> loop.py; the words of the card -> evaluation/card.py.
Holds     steps, tokens and seconds are sums over the lines of `metrics.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.sources import data_set

__all__ = ["DataFile", "StageRecord", "TrainingRecord", "training_record"]

_LIBRARIES = ("ultragist-rag", "torch", "transformers")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageRecord(_Strict):
    """What was done in one stage, and how the config describes it."""

    name: str
    steps: int
    tokens: int
    seconds: float
    modes: dict[str, float]
    kinds: dict[str, float]
    ratios: tuple[int, ...]
    real_words: bool = False


class DataFile(_Strict):
    """A file that was read, and whose it is."""

    file: str
    name: str
    source: str
    licence: str


class TrainingRecord(_Strict):
    """One finished run; see docs/training.md for every field."""

    config: str
    seed: int
    steps: int
    tokens: int
    seconds: float
    device: str
    date: str
    versions: dict[str, str]
    stages: tuple[StageRecord, ...]
    files: tuple[DataFile, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> TrainingRecord:
        """Read a record.

        Raises:
            TrainingError: If the file is missing, or is no record.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise TrainingError(f"{path} is no record of a training run: {error}") from error

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def training_record(
    config: Path,
    metrics: Path,
    files: Sequence[str],
    device: str,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> TrainingRecord:
    """Make the record of a run from its config and from the lines that it wrote.

    Args:
        config: The YAML file of the run.
        metrics: `metrics.jsonl` in the folder of the run; the day on which it was written last is the date.
        files: Files of the data folder that were read, such as `train/factbook.jsonl.xz`.
        device: What it ran on.
        versions: Of the libraries that it ran with; default those of this process.
        notes: What a run of the config would do otherwise.

    Returns:
        The record.

    Raises:
        TrainingError: If the lines are missing or damaged, are of another config, or a data file is unknown.
    """
    described = TrainConfig.read(config)
    lines = _lines(metrics)
    stages = []
    for stage in described.stages:
        of_stage = [line for line in lines if line["stage"] == stage.name]
        stages.append(
            StageRecord(
                name=stage.name,
                steps=len(of_stage),
                tokens=sum(line["tokens"] for line in of_stage),
                seconds=_seconds(of_stage),
                modes={str(mode): share for mode, share in stage.modes.items()},
                kinds=stage.kinds,
                ratios=tuple(dict.fromkeys(stage.ratios)) if set(stage.modes) != {"full"} else (),
                real_words=stage.real_words,
            )
        )
    wrong = [one for one, planned in zip(stages, described.stages, strict=True) if one.steps != planned.steps]
    if wrong or len(lines) != described.n_steps:
        where = f"{wrong[0].steps} steps of stage {wrong[0].name!r}" if wrong else f"{len(lines)} steps"
        raise TrainingError(
            f"{metrics} tells of {where}, which is not what {config} says: finish the run, or name its own config."
        )
    return TrainingRecord(
        config=config.name,
        seed=described.seed,
        steps=len(lines),
        tokens=sum(line["tokens"] for line in lines),
        seconds=_seconds(lines),
        device=device,
        date=datetime.fromtimestamp(metrics.stat().st_mtime, UTC).strftime("%Y-%m-%d"),
        versions=dict(versions or {name: metadata.version(name) for name in _LIBRARIES}),
        stages=tuple(stages),
        files=tuple(DataFile(file=file, **data_set(file)._asdict()) for file in files),
        notes=tuple(notes),
    )


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    return round(sum(float(line["seconds"]) for line in lines), 1)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all({"stage", "tokens", "seconds"} <= line.keys() for line in lines):
            raise ValueError("a line has no stage, tokens or seconds")
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"{path} cannot be read as the lines of a training run: {error}") from error
    return lines
