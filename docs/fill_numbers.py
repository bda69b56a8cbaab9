"""Write measured numbers into README.md and docs, and the whole model card, from the files that commands printed.

ultragist-rag bars --data DATA --base BASE --output docs/results/bars.json
ultragist-rag evaluate --quantise int8,int4 --output docs/results/quantisation.json
ultragist-rag recall --output docs/results/recall.json
ultragist-rag attribution --output docs/results/attribution.json
ultragist-rag demo && ultragist-rag demo > docs/results/demo.txt  # the second time, when the memories are there
python docs/fill_numbers.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultragist_rag.evaluation.card import countries_table, markdown_table, measured_by, model_card
from ultragist_rag.evaluation.report import HELD, interval
from ultragist_rag.sizing import size_rows, sizes
from ultragist_rag.training.record import TrainingRecord

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
CARD = ROOT / "ultragist_rag" / "bundled" / "README.md"
SHOWN = ("full" + HELD, "composed" + HELD, "full", "composed")
"""On README, in this order; the model card has every row."""
QUANTISED = "ultragist-rag evaluate --quantise int8,int4"
N_TOKENS = 512  # of the document whose bytes are counted


def results_table() -> str:
    """A part of what was measured about unseen countries, as a Markdown table; the model card has the whole."""
    record = measured()
    rows = [row for row in record["countries"] if row["task"] == "corpus" and row["method"] in SHOWN]
    rows.sort(key=lambda row: SHOWN.index(row["method"]))
    return f"{countries_table(rows)}\n\n{measured_by(record)}"


def demo() -> str:
    """What the demo printed."""
    printed = (RESULTS / "demo.txt").read_text(encoding="utf-8").rstrip()
    return f"```\n{printed}\n```"


def measured() -> dict[str, Any]:
    """What `ultragist-rag bars` wrote."""
    record: dict[str, Any] = json.loads((RESULTS / "bars.json").read_text(encoding="utf-8"))
    return record


def card() -> str:
    """The model card."""
    training = RESULTS / "training.json"
    return model_card(CARD.parent, measured(), TrainingRecord.read(training) if training.is_file() else None)


def sizing_table() -> str:
    """What `ultragist-rag sizing` prints, as a Markdown table."""
    head, *rows = size_rows(sizes(N_TOKENS))
    return (
        markdown_table(head, rows, 3)
        + f"\n\nKiB of a document of {N_TOKENS} tokens, printed by `ultragist-rag sizing`."
    )


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
            interval(row["exact_match"]),
            interval(row["difference"]),
            f"{row['changed']:.3f}",
        ]
        for row in record["rows"]
    ]
    first = record["rows"][0]
    note = f"{first['questions']} questions at ratio {first['ratio']}, printed by `{QUANTISED}`"
    return markdown_table(head, rows, 1) + f"\n\n{note} ({_versions(record)}, CPU, float32)."


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
            interval(row["exact_match"]),
            interval(row["characters"]),
            "" if row["difference"] is None else interval(row["difference"]),
        ]
        for row in record["rows"]
    ]
    note = f"Printed by `ultragist-rag recall` ({_versions(record)}, CPU, float32)."
    return markdown_table([*head, "gain (95 %)"], rows, 2) + f"\n\n{note}"


def attribution_table() -> str:
    """How well source scores find the document that an answer is from, as a Markdown table."""
    record = json.loads((RESULTS / "attribution.json").read_text(encoding="utf-8"))
    head = ["scored by", "ratio", "questions", "AUC (95 %)", "AUC, right answers", "gold one first (95 %)"]
    rows = [
        [
            row["kind"],
            ",".join(map(str, row["ratios"])),
            f"{row['questions']} ({row['right']} right)",
            *(interval(row[name]) for name in ("auc", "auc_right", "top1")),
            f"{row['seconds']:.3f}",
        ]
        for row in record["rows"]
    ]
    note = f"Printed by `ultragist-rag attribution` ({_versions(record)}, CPU, float32)."
    return markdown_table([*head, "seconds each"], rows, 2) + f"\n\n{note}"


def _versions(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def fill(page: str, name: str, block: str) -> str:
    """The page with what stands between the marks of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match.group(1)}{block}\n{match.group(2)}", page)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"results": results_table, "demo": demo},
    "docs/asking.md": {"attribution": attribution_table},
    "docs/operations.md": {"sizing": sizing_table, "quantisation": quantisation_table},
    "docs/verbatim.md": {"recall": recall_table},
}
"""Pages, and what makes the block between the marks of each name."""


def filled_page(page: str, name: str) -> str:
    """A page with the numbers of today."""
    for mark, make in BLOCKS[name].items():
        page = fill(page, mark, make())
    return page


def main() -> None:
    """Fill every page that has marks, and write the model card."""
    for name in BLOCKS:
        path = ROOT / name
        path.write_text(filled_page(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    CARD.write_text(card(), encoding="utf-8")


if __name__ == "__main__":
    main()
