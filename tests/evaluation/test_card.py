"""Sizes in the card are those of the files, limits hold only with their numbers, the record tells the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.engine import UltraGist
from ultragist_rag.evaluation.bars import Bar, Measured, TaskRow
from ultragist_rag.evaluation.card import model_card
from ultragist_rag.evaluation.limits import limits
from ultragist_rag.evaluation.report import HELD, Row
from ultragist_rag.training.record import DataFile, StageRecord, TrainingRecord
from ultragist_rag.training.sources import data_set

FILE = "train/wikipedia-00.jsonl.xz"
RECORD = TrainingRecord(
    config="mine.yaml",
    seed=7,
    steps=1234,
    tokens=5_600_000,
    seconds=7200.0,
    device="a fast machine",
    date="2026-01-02",
    versions={"torch": "9.9"},
    stages=(
        StageRecord(
            name="only", steps=1234, tokens=5_600_000, seconds=7200.0, modes={"full": 1.0}, kinds={"text": 1}, ratios=()
        ),
    ),
    files=(DataFile(file=FILE, **data_set(FILE)._asdict()),),
)

FACTS = {
    "command": "ultragist-rag bars",
    "versions": {"torch": "9.9"},
    "device": "CPU",
    "dtype": "float32",
    "source_bias": 0.0,
    "date": "2026-01-03",
    "fingerprint": "f1",
    "base": None,
}


def measured(full: float = 0.9, uuid: float = 0.9, em: float = 0.9, closed: float = 0.5, unseen: float = 0.9) -> Any:
    def around(value: float) -> tuple[float, float, float]:
        return value, value - 0.02, value + 0.02

    countries = [
        Row("corpus", "full", None, 50, around(full), (1.0, 1.0, 1.0), None, around(unseen), 10),
        Row("corpus", "composed", 4, 50, around(full), (1.0, 1.0, 1.0), around(0.0), None, 10),
        Row("corpus", "closed", None, 50, around(closed), around(closed), None, None, 10),
    ]
    tasks = [
        TaskRow("recall/uuid", "subem", "full", None, 50, around(uuid), (1.0, 1.0, 1.0)),
        TaskRow("rag/xquad", "em", "full", None, 50, around(em), None),
        TaskRow("perplexity/wikitext2", "ppl", "gist", 4, 50, around(12.5), None),
    ]
    return Measured(FACTS, countries, tasks).to_dict()


def test_the_card_tells_sizes_training_and_what_was_measured(model_folders: tuple[Path, Path]) -> None:
    folder = model_folders[0]
    card = model_card(folder, measured(), RECORD)
    engine = UltraGist.from_pretrained(folder)
    n_gist = sum(value.numel() for value in engine.gist_parameters().values())
    assert f"a gist adapter of {n_gist / 1e6:.1f} M" in card
    assert f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB" in card
    for words in ("configs/mine.yaml", "seed 7", "1,234 steps", "5,600,000 tokens", "2.0 hours", "a fast machine"):
        assert words in card
    known = data_set(FILE)
    assert f"| `{FILE}` | {known.name} | {known.source} | {known.licence} |" in card
    assert "0.900 (0.880-0.920)" in card
    assert "12.500" in card
    assert "`labels`" not in card
    assert model_card(folder, measured(), None) != card
    assert "no record of this training" in model_card(folder, measured(), None)


def test_bars_of_plain_decoding_are_counted_apart(model_folders: tuple[Path, Path]) -> None:
    assert "\n\n4 of 4 are met.\n\n" in model_card(model_folders[0], measured(), None)
    rows = [
        Row("corpus", method, None, 50, (score, score, score), (1.0, 1.0, 1.0), None, None, 0)
        for method, score in (("full", 0.7), ("full" + HELD, 0.9))
    ]
    both = Measured({**FACTS, "source_bias": 3.0}, rows, []).to_dict()
    said = "1 of 1 are met as the model answers by default (`source_bias` 3), 0 of 1 by plain decoding."
    assert said in model_card(model_folders[0], both, None)
    assert "By plain decoding it misses 1 of its bars: corpus, full text, plain decoding: exact" in "".join(
        limits(both, [])
    )


def test_wordings_are_those_that_the_model_answers_by_default() -> None:
    rows = [
        Row("corpus", method, None, 50, (0.9, 0.9, 0.9), (1.0, 1.0, 1.0), None, (unseen, unseen, unseen), 10)
        for method, unseen in (("full", 0.5), ("full" + HELD, 0.95))
    ]
    said = {n: "".join(limits(Measured(FACTS, rows[:n], []).to_dict(), [])) for n in (1, 2)}
    assert ["unseen wordings fail" in said[n] for n in (1, 2)] == [True, False]


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({"full": 0.7, "unseen": 0.7}, "misses 1 of its bars: corpus, full text"),
        ({"closed": 0.05}, "knows nothing of the world"),
        ({"uuid": 0.5}, "copy UUIDs"),
        ({"em": 0.3}, "XQuAD is 0.300"),
        ({"unseen": 0.5}, "unseen wordings fail more often: 0.500"),
    ],
)
def test_a_limit_is_told_only_where_a_number_shows_it(worse: dict[str, float], said: str) -> None:
    usual = limits(measured(), [4])
    assert len(usual) == len(limits({"countries": [], "tasks": [], "bars": []}, []))
    assert not any(said in line for line in usual)
    assert any(said in line for line in limits(measured(**worse), [4]))
    assert any("Ratio 4 was not trained" in line for line in limits(measured(), [2, 8]))


def test_values_that_are_missing_are_none_in_json() -> None:
    nothing = float("nan")
    row = TaskRow("recall/uuid", "subem", "gist+codes", 4, 5, (0.0, 0.0, 0.0), (nothing, nothing, nothing))
    found = Measured({"base": None}, [], [row]).to_dict()
    assert found["tasks"][0]["kept"] is None
    assert found["tasks"][0]["score"] == [0.0, 0.0, 0.0]
    assert [one["value"] for one in found["bars"] if one["bar"]] == [None]
    assert Bar("x", (nothing, nothing, nothing), 0.9, 5).met is False
