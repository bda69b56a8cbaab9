"""The programs of README and quickstart run as they stand, on the bundled model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "ultragist_rag/bundled/model.safetensors"


def programs(name: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_program_runs_and_answers(name: str, tmp_path: Path, own_secret: None) -> None:
    run = [sys.executable, "-c", programs(name)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (tmp_path / "gists").is_dir()


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
@pytest.mark.parametrize("name", ["docs/asking.md", "docs/security.md", "docs/store.md"])
def test_program_runs(name: str, tmp_path: Path, own_secret: None) -> None:
    assert len(programs(name)) > 100
    run = [sys.executable, "-c", programs(name)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_to_files(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []
    assert "/work/" not in text


def test_every_setting_is_documented() -> None:
    from dataclasses import fields

    from ultragist_rag import GistConfig
    from ultragist_rag.training.config import Stage, TrainConfig

    settings = (ROOT / "docs/settings.md").read_text("utf-8")
    training = (ROOT / "docs/training.md").read_text("utf-8")
    assert [field.name for field in fields(GistConfig) if f"`{field.name}`" not in settings] == []
    keys = {*Stage.model_fields, *TrainConfig.model_fields}
    assert [key for key in sorted(keys) if not re.search(rf"`{key}`", training)] == []
