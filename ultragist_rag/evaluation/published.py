"""What the study of gist tokens has published, to stand beside our own numbers.

Is        the tables of `published.json`: scores by suite and ratio, and what they keep of full attention.
Flow      published.json -> [published] -> tables, plots, results_page.
Paper     arXiv 2412.17483, tables 5 and 10.
Holds     shares are computed from published scores, none is typed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

__all__ = ["Published", "published"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published method.

    Attributes:
        name: What it is, for the head of a column.
        base: Its base model.
        source: Where it is published.
        kept: By suite (ours, by name) and ratio: score over that of full attention.
    """

    name: str
    base: str
    source: str
    kept: dict[str, dict[int, float]]

    @property
    def ratios(self) -> list[int]:
        """Ratios that are published."""
        return sorted({ratio for row in self.kept.values() for ratio in row})


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """Return the published methods, the best variant first."""
    record = json.loads(files("ultragist_rag.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
    suites: dict[str, str] = record["suites"]
    found = []
    for one in record["methods"]:
        full = dict(zip(record["columns"], record["full"][one["base"]], strict=True))
        kept: dict[str, dict[int, float]] = {}
        for ratio, scores in one["scores"].items():
            for column, score in zip(record["columns"], scores, strict=True):
                kept.setdefault(suites[column], {})[int(ratio)] = score / full[column]
        found.append(Published(name=one["name"], base=one["base"], source=one["source"], kept=kept))
    return tuple(found)
