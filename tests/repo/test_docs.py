"""The programs of README and quickstart run as they stand, on the bundled model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "ultragist_rag/bundled/model.safetensors"


def programs(name: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.MULTILINE | re.DOTALL))


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
@pytest.mark.parametrize(
    ("name", "prints"),
    [
        ("README.md", "Lome"),
        ("docs/quickstart.md", "Ulaanbaatar"),
        ("docs/asking.md", ""),
        ("docs/security.md", ""),
        ("docs/sessions.md", "tugrik"),
        ("docs/store.md", ""),
        ("docs/operations.md", ""),
        ("docs/verbatim.md", ""),
        ("docs/evaluation.md", "gist 4"),
        ("docs/extending.md", ""),
        ("docs/calibration.md", "composed"),
    ],
)
def test_program_runs_and_answers(
    name: str,
    prints: str,
    tmp_path: Path,
    own_secret: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(programs(name)) > 100
    exec(compile(programs(name), name, "exec"), {"__name__": "docs"})
    assert prints in capsys.readouterr().out


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
