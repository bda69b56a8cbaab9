"""The command `ultragist-rag attribution`: how well source scores find the document that an answer is from.

Is        what evaluation/attribution.py measures, as a table or as JSON.
Flow      evaluation -> [cli_attribution] -> cli. Importing it imports no torch: the command does.
Change    options, what a table shows.
Not here  cases and ways to score -> evaluation/heldout.py, evaluation/attribution.py.
Holds     equal options and equal weights give equal rows but for the seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import one_line_errors, whole_numbers

__all__ = ["attribution"]

_WIDTH = 150
_CORPUS = Path("examples/corpus")
_QUESTIONS = Path("examples/corpus_questions.jsonl")


@one_line_errors
def attribution(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    ratio: Annotated[
        list[str] | None,
        typer.Option(
            "--ratio",
            help="Raw tokens per gist token; of '2,4,8' each document draws one. May be repeated.",
        ),
    ] = None,
    corpus: Annotated[Path, typer.Option("--corpus", help="Folder of profiles.")] = _CORPUS,
    questions: Annotated[Path, typer.Option("--questions", help="Their questions.")] = _QUESTIONS,
    limit: Annotated[int | None, typer.Option("--limit", help="Questions, spread evenly.", min=1)] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File for the rows as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure how well source scores find the document that an answer about held-out countries is from."""
    given = [_ratios(one) for one in ratio or ()]
    from ultragist_rag.console import print_rows
    from ultragist_rag.engine import UltraGist
    from ultragist_rag.evaluation.attribution import attribution_table, measure_attribution
    from ultragist_rag.evaluation.heldout import corpus_cases
    from ultragist_rag.evaluation.metrics import spread

    cases = spread(corpus_cases(corpus, questions), limit)
    engine = UltraGist.from_pretrained(model)
    plan = given or [[engine.config.ratio], sorted({*engine.config.choices} - {0})]
    rows = [row for ratios in plan for row in measure_attribution(engine, cases, ratios)]
    print_rows(rows, attribution_table(rows), output, _WIDTH, as_json=as_json)


def _ratios(text: str) -> list[int]:
    return whole_numbers(
        map(str.strip, text.split(",")),
        lambda wrong: f"ratio {wrong!r} is unknown: give whole numbers of at least 1, such as 4 or 2,4,8.",
    )
