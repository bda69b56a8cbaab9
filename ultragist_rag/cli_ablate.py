"""The command `ultragist-rag ablate`: variants of one training run, trained and scored on equal data.

Is        what training/ablation.py runs, and a table of its record.
Flow      training, evaluation -> [cli_ablate] -> cli. Importing it imports no torch: the command does.
Change    options, what is printed.
Not here  what a variant is -> training/ablation.py; intervals and table -> evaluation/ablation_page.py.
Holds     a command that was stopped goes on where it was; finished variants are not run again.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import one_line_errors

__all__ = ["ablate"]

_WIDTH = 160


@one_line_errors
def ablate(
    config: Annotated[Path, typer.Option("--config", help="YAML file of a run and its variants.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with train/ and qa_train/.")],
    base: Annotated[str, typer.Option("--base", help="Folder or hub id that every variant starts from.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the runs and their record.")],
    minutes: Annotated[float | None, typer.Option("--minutes", help="Begin nothing more after so long.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Train variants of one run on equal data and compare what their memories keep; see docs/training.md."""
    from ultragist_rag.console import print_json, print_table
    from ultragist_rag.evaluation.ablation_page import ablation_grid, read_ablation, summaries
    from ultragist_rag.evaluation.tables import rich_table
    from ultragist_rag.training.ablation import AblationPlan, run_ablation

    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    options = {"--config": config, "--data": data, "--base": base, "--output": output}
    command = shlex.join(["ultragist-rag", "ablate", *(str(part) for pair in options.items() for part in pair)])
    plan = AblationPlan.read(config)
    record = read_ablation(run_ablation(plan, data, base, output, deadline=deadline, command=command))
    if as_json:
        print_json([summary.to_dict() for summary in summaries(record)])
    else:
        print_table(rich_table(ablation_grid(record)), _WIDTH)
