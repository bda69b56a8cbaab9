"""An engine, prompts with and without memories, and the way to this folder's helper `together`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def engine(text_engine):
    return text_engine


@pytest.fixture(scope="module")
def prompts(engine):
    first, second = engine.compress(["the quick brown fox jumps " * 4, "over the lazy dog"])
    return [["the fox"], [first, " what is it?"], ["read ", second, " and ", first, ", then answer"], ["a" * 40]]
