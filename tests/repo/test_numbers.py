"""Numbers in README and model card are those of the files that the commands wrote."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_numbers", ROOT / "docs" / "fill_numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", [0, 1])
def test_pages_hold_the_measured_numbers(place: int) -> None:
    script = _script()
    page = script.PAGES[place].read_text(encoding="utf-8")
    record = json.loads((script.RESULTS / "bundled.json").read_text(encoding="utf-8"))
    assert script.filled(page, script.PAGES[place], record) == page
    (full,) = (row for row in record["rows"] if (row["task"], row["method"]) == ("corpus", "full"))
    assert f"{full['exact_match'][0]:.3f}" in page
    assert script.fill("<!-- a:begin -->\nold\n<!-- a:end -->", "a", "new") == "<!-- a:begin -->\nnew\n<!-- a:end -->"
