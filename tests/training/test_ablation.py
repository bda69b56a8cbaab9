"""An ablation runs every variant once, on equal samples, goes on where it was stopped, and is told from its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ultragist_rag.errors import InputError, TrainingError
from ultragist_rag.evaluation.ablation_page import ablation_grid, ablation_section, read_ablation, summaries
from ultragist_rag.training.ablation import AblationPlan, run_ablation
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.loop import Trainer

STAGE = {
    "name": "memories",
    "steps": 2,
    "tokens": 300,
    "kinds": {"profile": 1.0},
    "modes": {"independent": 1.0},
    "raw_share": 0.0,
    "windows": [16],
}
PLAN: dict[str, Any] = {
    "run": {
        "output": "runs",
        "data": "data",
        "source": "countries",
        "texts": [],
        "gist": {"window": 16, "ratio": 4},
        "lr": 0.01,
        "warmup": 1,
        "stages": [STAGE],
    },
    "asked": {"kinds": ["labels", "profile"], "rows": 3, "ratios": [2, 4], "window": 16},
    "variants": [
        {"name": "plain", "about": "as it is", "seeds": [0, 1]},
        {"name": "segment", "about": "segmentation", "gist": {"attention": "segmentation"}},
        {"name": "frozen", "about": "frozen base", "run": {"train_base": False}},
        {"name": "hidden", "about": "recurrent", "gist": {"attention": "full-coverage", "memory": "recurrent"}},
        {"name": "read", "about": "autoencoding", "stage": {"autoencoding": 0.5}},
    ],
}


@pytest.fixture
def base(tiny_run: TrainConfig) -> str:
    """A base that was trained for two steps with full attention."""
    stage = tiny_run.stages[0]
    return str(Trainer(tiny_run.model_copy(update={"stages": (stage,)})).run())


def test_every_variant_is_run_once_and_told_from_the_record(base: str, country_data: Path, tmp_path: Path) -> None:
    plan, output = AblationPlan.model_validate(PLAN), tmp_path / "ablation"
    record = read_ablation(run_ablation(plan, country_data, base, output))
    names = [(run["name"], run["seed"]) for run in record.runs]
    assert names == [("base", 0), ("plain", 0), *((v.name, 0) for v in plan.variants[1:]), ("plain", 1)]
    drawn = {name: [line["tokens"] for line in _metrics(output / name)] for name in ("plain-0", "segment-0", "plain-1")}
    assert drawn["plain-0"] == drawn["segment-0"] != drawn["plain-1"]
    found = {one.name: one for one in summaries(record)}
    assert found["plain"].against is None
    assert found["plain"].seeds == (0, 1)
    for one in found.values():
        value, low, high = one.accuracy
        assert 0 <= low <= value <= high <= 1
    # A frozen base reads text as before.
    by_name = {run["name"]: run["cells"] for run in record.runs}
    assert _full(by_name["frozen"]) == _full(by_name["base"]) != _full(by_name["plain"])
    text = str(ablation_section(record).lines)
    assert all(f"outcome: {name} against plain" in text for name in list(found)[1:])
    assert [row[0] for row in ablation_grid(record).rows[2:]] == list(found)


def test_what_was_stopped_goes_on_and_what_is_finished_stays(base: str, country_data: Path, tmp_path: Path) -> None:
    plan = AblationPlan.model_validate({**PLAN, "variants": PLAN["variants"][1:2]})
    whole = run_ablation(plan, country_data, base, tmp_path / "whole")
    broken = tmp_path / "broken"
    config = plan.config(plan.variants[0], 0, data=country_data, base=base, output=broken / "segment-0")
    Trainer(config).run(stop_after=1)
    record = run_ablation(plan, country_data, base, broken)
    assert json.loads(record.read_text())["runs"] == json.loads(whole.read_text())["runs"]
    (broken / "segment-0" / "metrics.jsonl").unlink()
    run_ablation(plan, country_data, base, broken, deadline=0.0)
    assert not (broken / "segment-0" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"variants": [PLAN["variants"][0]] * 2}, "two variants are called 'plain'"),
        ({"variants": [{"name": "a b", "about": ""}]}, "variants.0.name"),
        ({"variants": [{"name": "a", "about": "", "against": "b"}]}, "against is 'b'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_plan_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **change}), encoding="utf-8")
    with pytest.raises(TrainingError, match=told):
        AblationPlan.read(path)


def test_a_wrong_variant_is_named(tmp_path: Path) -> None:
    plan = AblationPlan.model_validate({**PLAN, "variants": [{"name": "odd", "about": "", "run": {"colour": 1}}]})
    with pytest.raises(TrainingError, match="variant odd is not a valid training config: colour"):
        plan.config(plan.variants[0], 0)
    with pytest.raises(InputError, match="ultragist-rag ablate"):
        read_ablation(tmp_path / "none.json")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _full(cells: list[dict[str, Any]]) -> list[object]:
    return [cell["loss"] for cell in cells if cell["method"] == "full"]
