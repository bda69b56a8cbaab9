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
COMMAND = "ultragist-rag evaluate --data DATA --base BASE"


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
    return "\n".join([*lines, "", f"Printed by `{COMMAND}` ({versions}, CPU, float32)."])


def _interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f}-{high:.3f})"


def fill(page: str, name: str, block: str) -> str:
    """The page with what stands between the marks of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match.group(1)}{block}\n{match.group(2)}", page)


def main() -> None:
    """Fill every page that has marks."""
    record = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))
    brief = {**record, "rows": [row for row in record["rows"] if row["method"] in ("full", "composed", "closed")]}
    demo = (RESULTS / "demo.txt").read_text(encoding="utf-8").rstrip()
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        text = fill(text, "results", results_table(brief if path.parent == ROOT else record))
        text = fill(text, "demo", f"```\n{demo}\n```")
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
