"""The command `ultragist-rag recall`: numbers and UUIDs out of memories, with and without verbatim tokens.

Is        what evaluation/recall.py measures, as a table or as JSON.
Flow      evaluation -> [cli_recall] -> cli. Importing it imports no torch: the command does.
Change    options, what a table shows.
Not here  cases and conditions -> evaluation/recall.py.
Holds     equal options and equal weights give equal rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import names, one_line_errors, whole_numbers

__all__ = ["recall"]

_WIDTH = 140
_FACTS = Path("examples/corpus_facts.json")


@one_line_errors
def recall(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    verbatim: Annotated[str, typer.Option("--verbatim", help="Policies, such as 'codes,regex'.")] = "codes,regex",
    questions: Annotated[int, typer.Option("--questions", help="Questions of each kind.", min=1)] = 150,
    slots: Annotated[str, typer.Option("--slots", help="Slots of a document, such as 24,48; else by kind.")] = "",
    facts: Annotated[Path, typer.Option("--facts", help="JSON file of facts to write documents from.")] = _FACTS,
    output: Annotated[Path | None, typer.Option("--output", help="File for the rows as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Ask for numbers and UUIDs in compressed documents, with and without verbatim tokens, at equal slots."""
    from ultragist_rag.console import print_rows
    from ultragist_rag.engine import UltraGist
    from ultragist_rag.evaluation.recall import BUDGETS, measure_recall, read_pool, recall_cases, recall_table
    from ultragist_rag.memory.verbatim import policy_name

    policies = [policy_name(name.strip()) for name in verbatim.split(",")]
    given = whole_numbers(
        names(slots), lambda wrong: f"slots {wrong!r} is no number: give whole numbers of at least 1, such as 24,48."
    )
    pool = read_pool(facts)
    engine = UltraGist.from_pretrained(model)
    rows = []
    for task, budgets in BUDGETS.items():
        rows += measure_recall(engine, task, recall_cases(task, pool, questions), given or budgets, policies)
    print_rows(rows, recall_table(rows), output, _WIDTH, as_json=as_json)
