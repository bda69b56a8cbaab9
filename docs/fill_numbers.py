"""Write measured numbers into README.md, docs and the model card, from the files that commands printed.

ultragist-rag evaluate --data DATA --base BASE --output docs/results/bundled.json
ultragist-rag demo > docs/results/demo.txt
python docs/fill_numbers.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "ultragist_rag" / "bundled" / "README.md")
SHOWN = ("full", "composed", "closed")  # on README; the model card has every row
COMMAND = "ultragist-rag evaluate --data DATA --base BASE --limit N"


def results_table(record: dict[str, Any]) -> str:
    """The rows of an evaluation as a Markdown table."""
    lines = [
        "| questions | read from | ratio | exact match (95 %) | kept of full text (95 %) | unseen wordings |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        ratio = "" if row["ratio"] is None else row["ratio"]
        unseen = row["heldout_wording"]
        cells = [
            f"{row['task']} ({row['questions']})",
            row["method"],
            ratio,
            _interval(row["exact_match"]),
            _interval(row["retention"]),
            f"{unseen:.3f}" if unseen == unseen else "",  # NaN where no wording is held out
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join(
        [*lines, "", f"Printed by `{COMMAND}`, N being the number of questions ({versions}, CPU, float32)."]
    )


def _interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def fill(page: str, name: str, block: str) -> str:
    """The page with what stands between the marks of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match.group(1)}{block}\n{match.group(2)}", page)


def filled(page: str, path: Path, record: dict[str, Any]) -> str:
    """The page with the numbers of today's files; README shows a part of the rows."""
    if path.parent == ROOT:
        rows = [row for row in record["rows"] if row["task"] == "corpus" and row["method"] in SHOWN]
        record = {**record, "rows": rows}
    demo = (RESULTS / "demo.txt").read_text(encoding="utf-8").rstrip()
    return fill(fill(page, "results", results_table(record)), "demo", f"```\n{demo}\n```")


def main() -> None:
    """Fill every page that has marks."""
    record = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8"), path, record), encoding="utf-8")


if __name__ == "__main__":
    main()
