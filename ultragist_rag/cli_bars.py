"""The command `ultragist-rag bars`: whether a model meets the bars of the bundled one.

Is        what evaluation/bars.py measures, as a table or as JSON.
Flow      evaluation -> [cli_bars] -> cli. Importing it imports no torch: the command does.
Change    options, what is printed.
Not here  the bars -> evaluation/bars.py.
Holds     a missed bar is a result: the exit code is 0 unless --strict asks for more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import one_line_errors

__all__ = ["bars"]

_WIDTH = 120
_CORPUS = Path("examples/corpus")
_QUESTIONS = Path("examples/corpus_questions.jsonl")


@one_line_errors
def bars(  # noqa: PLR0913 - one parameter per option
    data: Annotated[Path, typer.Option("--data", help="Folder with train/, qa_train/ and eval/.")],
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    base: Annotated[str | None, typer.Option("--base", help="The model before gist training, as denominator.")] = None,
    corpus: Annotated[Path, typer.Option("--corpus", help="Folder of profiles.")] = _CORPUS,
    questions: Annotated[Path, typer.Option("--questions", help="Their questions.")] = _QUESTIONS,
    limit: Annotated[int | None, typer.Option("--limit", help="Questions of each set, spread evenly.", min=1)] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File for everything measured as JSON.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leave with exit code 1 if a bar is missed, plain decoding aside.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure a model on all that the bundled one has to be good at, and say which bars it meets."""
    from ultragist_rag.console import print_json, print_table
    from ultragist_rag.evaluation.bars import bars_table, measure_bars
    from ultragist_rag.evaluation.report import write_json

    measured = measure_bars(model, base, data, (corpus, questions), limit)
    if output is not None:
        write_json(measured.to_dict(), output)
    if as_json:
        print_json(measured.to_dict())
    else:
        print_table(bars_table(measured), _WIDTH)
    if strict and any(bar.met is False and not bar.plain for bar in measured.bars):
        raise typer.Exit(1)
