"""A calibration judges by its rule, is read back as it was, and belongs to the weights it was measured with."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from calibrated import calibration_of, figures_of

from ultragist_rag import GistConfig, UltraGist
from ultragist_rag.errors import CheckpointError, InputError
from ultragist_rag.modeling.calibration import CALIBRATION_FILE, Calibration, Thresholds


def test_the_rule() -> None:
    fake = SimpleNamespace(fingerprint="", tokenizer_fingerprint="", config=GistConfig())

    def good(limits: Thresholds | None = None, **figures: float) -> bool | None:
        found = calibration_of(fake, figures_of(4, **figures))
        return replace(found, thresholds=limits or found.thresholds).is_good(4)

    assert good(composed=1.0, joint=1.0)  # half of what no document diverges by
    assert not good(composed=1.06, joint=1.06)  # memories that bring little, however they are made
    assert good(composed=0.9, joint=0.1, agreement=0.86)  # agrees as often
    assert good(composed=0.19, joint=0.1, agreement=0.0)  # diverges as little
    assert not good(composed=0.21, joint=0.1, agreement=0.84)  # neither
    assert good(Thresholds(max_kl_factor=2), composed=0.21, joint=0.1, agreement=0.84)
    assert not good(Thresholds(max_kl_share=0.1, kl_slack=0), composed=0.21, joint=0.2)
    for wrong in (-1, float("nan"), True):
        with pytest.raises(InputError, match="kl_slack is"):
            Thresholds(kl_slack=wrong)


def test_a_ratio_is_judged_by_the_nearest_higher_one(text_engine: Any) -> None:
    found = calibration_of(text_engine, figures_of(8, 1.9, agreement=0.0), figures_of(2, 0.1), figures_of(16, 0.1))
    assert found.ratios == (2, 8, 16)
    assert [found.is_good(ratio) for ratio in (1, 2, 3, 8, 9, 16, 17)] == [True, True, False, False, True, True, None]
    with pytest.raises(InputError, match="joint at ratio 4"):
        found.row("joint", 4)


def test_a_file_is_read_back_as_it_was(text_engine: Any, tmp_path: Path) -> None:
    found = calibration_of(text_engine, figures_of(4, 0.3), figures_of(2, 0.1))
    found.write(tmp_path / "a.json")
    assert Calibration.read(tmp_path / "a.json") == found == Calibration.from_dict(found.to_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        found.write(tmp_path / "nowhere" / "a.json")


@pytest.fixture(scope="module")
def folder(model_folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a calibration beside its weights."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(model_folders[0], folder)
    engine = UltraGist.from_pretrained(folder)
    calibration_of(engine, figures_of(4, 0.1)).write(folder / CALIBRATION_FILE)
    return folder


def test_it_is_loaded_with_the_weights_and_saved_with_them(folder: Path, tmp_path: Path) -> None:
    engine = UltraGist.from_pretrained(folder)
    known = Calibration.read(folder / CALIBRATION_FILE)
    assert engine.calibration == known
    assert UltraGist.from_pretrained(folder, calibration=False).calibration is None
    other = replace(known, command="another")
    other.write(tmp_path / "other.json")
    for given in (other, tmp_path / "other.json", str(tmp_path / "other.json")):
        assert UltraGist.from_pretrained(folder, calibration=given).calibration == other
    engine.save_pretrained(tmp_path / "same")
    engine.save_pretrained(tmp_path / "adapter", adapter_only=True)
    for copied in ("same", "adapter"):
        assert UltraGist.from_pretrained(tmp_path / copied).calibration == known
    with torch.no_grad():
        next(iter(engine.gist_parameters().values())).add_(1)
    assert engine.calibration is None  # other weights by now
    engine.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained" / CALIBRATION_FILE).exists()


def test_one_of_other_weights_is_left_out_with_one_warning(
    folder: Path, model_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    file = folder / CALIBRATION_FILE
    with pytest.warns(UserWarning, match="left out: it is of model") as seen:
        engine = UltraGist.from_pretrained(model_folders[1], calibration=file)
    assert len(seen) == 1
    assert engine.calibration is None
    known = Calibration.read(file)
    for change, says in (
        ({"tokenizer_fingerprint": "0" * 64}, "it is of tokenizer"),
        ({"settings": {**known.settings, "window": 7}}, "another window: 7"),
    ):
        with pytest.warns(UserWarning, match=says):
            assert UltraGist.from_pretrained(folder, calibration=replace(known, **change)).calibration is None


def test_a_damaged_file_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    good = json.loads((folder / CALIBRATION_FILE).read_text("utf-8"))
    broken = copy.deepcopy(good)
    broken["figures"][2]["kl"] = [0.1, float("nan"), 0.2]
    lacking = {**good, "figures": good["figures"][:1] + good["figures"][2:]}
    texts = ["{", "[]", "null", json.dumps({**good, "format_version": 99}), json.dumps({**good, "command": 3})]
    texts += [json.dumps(broken), json.dumps(lacking), json.dumps({**good, "thresholds": {"x": 1}})]
    shutil.copytree(folder, tmp_path / "model")
    for text in texts:
        (tmp_path / "model" / CALIBRATION_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=CALIBRATION_FILE):
            UltraGist.from_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="nowhere"):
        UltraGist.from_pretrained(folder, calibration=tmp_path / "nowhere.json")
