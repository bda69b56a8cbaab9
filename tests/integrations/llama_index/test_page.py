"""The programs of the docs page run as they stand, on the bundled model, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama_index_ultragist

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/llama_index.md"
BUNDLED = ROOT / "ultragist_rag/bundled/model.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
def test_programs_run(tmp_path: Path, own_secret: None) -> None:
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].strip()
    assert "True True" in done.stdout.splitlines()


def test_every_public_name_and_setting_is_on_the_page() -> None:
    text = PAGE.read_text("utf-8")
    fields = llama_index_ultragist.UltraGistPostprocessor.model_fields.keys() - {"callback_manager", "engine", "store"}
    names = {*llama_index_ultragist.__all__, *(fields - {"model_name"})}
    assert [name for name in sorted(names) if f"`{name}" not in text] == []
