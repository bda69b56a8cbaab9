"""Importing costs nothing: no tensor library, no framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "accelerate", "faiss", "sklearn", "langchain_core", "llama_index", "numpy")


@pytest.mark.parametrize("statement", ["import ultragist_rag", "import ultragist_rag.cli"])
def test_import_pulls_in_nothing_heavy(statement: str) -> None:
    code = f"{statement}, sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_check_can_fail() -> None:
    code = f"import numpy, sys\nprint(*sorted({{n.partition('.')[0] for n in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["numpy"]
