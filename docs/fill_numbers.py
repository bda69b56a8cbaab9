"""Write measured numbers into README.md, docs and the model card, from the files that commands printed.

ultragist-rag evaluate --data DATA --base BASE --output docs/results/bundled.json
ultragist-rag evaluate --quantise int8,int4 --output docs/results/quantisation.json
ultragist-rag recall --output docs/results/recall.json
ultragist-rag attribution --output docs/results/attribution.json
ultragist-rag demo > docs/results/demo.txt
python docs/fill_numbers.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ultragist_rag.sizing import size_rows, sizes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "ultragist_rag" / "bundled" / "README.md")
SHOWN = ("full", "composed", "closed")  # on README; the model card has every row
COMMAND = "ultragist-rag evaluate --data DATA --base BASE --limit N"
QUANTISED = "ultragist-rag evaluate --quantise int8,int4"
N_TOKENS = 512  # of the document whose bytes are counted


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
    return "\n".join(
        [*lines, "", f"Printed by `{COMMAND}`, N being the number of questions ({_versions(record)}, CPU, float32)."]
    )


def sizing_table() -> str:
    """What `ultragist-rag sizing` prints, as a Markdown table."""
    head, *rows = size_rows(sizes(N_TOKENS))
    return _markdown(head, rows, 3) + f"\n\nKiB of a document of {N_TOKENS} tokens, printed by `ultragist-rag sizing`."


def quantisation_table() -> str:
    """What quantised memories answer, as a Markdown table."""
    record = json.loads((RESULTS / "quantisation.json").read_text(encoding="utf-8"))
    head = ["stored as", "KiB a document", "error of keys", "error of values", "exact match (95 %)"]
    head += ["difference (95 %)", "other answers"]
    rows = [
        [
            row["dtype"],
            f"{row['n_bytes'] / 1024:.1f}",
            f"{row['key_error']:.4f}",
            f"{row['value_error']:.4f}",
            _interval(row["exact_match"]),
            _interval(row["difference"]),
            f"{row['changed']:.3f}",
        ]
        for row in record["rows"]
    ]
    first = record["rows"][0]
    note = f"{first['questions']} questions at ratio {first['ratio']}, printed by `{QUANTISED}`"
    return _markdown(head, rows, 1) + f"\n\n{note} ({_versions(record)}, CPU, float32)."


def recall_table() -> str:
    """What is recalled with and without verbatim tokens, as a Markdown table."""
    record = json.loads((RESULTS / "recall.json").read_text(encoding="utf-8"))
    head = ["asked for", "read from", "budget", "slots", "verbatim", "exact match (95 %)", "characters (95 %)"]
    rows = [
        [
            f"{row['task']} ({row['questions']})",
            row["read_from"],
            "" if row["budget"] is None else str(row["budget"]),
            f"{row['slots']:.1f}" if row["slots"] else "",
            f"{row['n_verbatim']:.1f}",
            _interval(row["exact_match"]),
            _interval(row["characters"]),
            "" if row["difference"] is None else _interval(row["difference"]),
        ]
        for row in record["rows"]
    ]
    note = f"Printed by `ultragist-rag recall` ({_versions(record)}, CPU, float32)."
    return _markdown([*head, "gain (95 %)"], rows, 2) + f"\n\n{note}"


def attribution_table() -> str:
    """How well source scores find the document that an answer is from, as a Markdown table."""
    record = json.loads((RESULTS / "attribution.json").read_text(encoding="utf-8"))
    head = ["scored by", "ratio", "questions", "AUC (95 %)", "AUC, right answers", "gold one first (95 %)"]
    rows = [
        [
            row["kind"],
            ",".join(map(str, row["ratios"])),
            f"{row['questions']} ({row['right']} right)",
            *(_interval(row[name]) for name in ("auc", "auc_right", "top1")),
            f"{row['seconds']:.3f}",
        ]
        for row in record["rows"]
    ]
    note = f"Printed by `ultragist-rag attribution` ({_versions(record)}, CPU, float32)."
    return _markdown([*head, "seconds each"], rows, 2) + f"\n\n{note}"


def _markdown(head: list[str], rows: Iterable[list[str]], left: int) -> str:
    """A table whose columns stand right, but for the first ones."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _versions(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


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


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "asking.md": {"attribution": attribution_table},
    "operations.md": {"sizing": sizing_table, "quantisation": quantisation_table},
    "verbatim.md": {"recall": recall_table},
}
"""Pages of docs, and what makes the block between the marks of each name."""


def filled_page(page: str, name: str) -> str:
    """A page of docs with the numbers of today."""
    for mark, make in BLOCKS[name].items():
        page = fill(page, mark, make())
    return page


def main() -> None:
    """Fill every page that has marks."""
    for name in BLOCKS:
        path = ROOT / "docs" / name
        path.write_text(filled_page(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    record = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8"), path, record), encoding="utf-8")


if __name__ == "__main__":
    main()
