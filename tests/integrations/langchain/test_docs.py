"""The programs about models in docs/langchain.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_programs_about_models_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs/langchain.md").read_text("utf-8")
    section = page.split("\n## Models\n")[1].split("\n## ")[0]
    programs = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(programs) > 3
    exec(compile("\n".join(programs), "docs/langchain.md", "exec"), {"__name__": "docs"})
    assert "Oslo" in capsys.readouterr().out
