"""Read the samples of our own words that come with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

__all__ = ["shipped"]


def shipped(name: str) -> Any:
    """Return what a YAML file of this folder says."""
    return yaml.safe_load(files("ultragist_rag.evaluation.tasks").joinpath(name).read_text(encoding="utf-8"))
