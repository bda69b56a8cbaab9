"""The command `ultragist-rag eval`: suites on a checkpoint, by several methods, as lines, tables, plots and a page.

Is        what evaluation/runner.py measures and evaluation/summary.py shows.
Flow      evaluation -> [cli_eval] -> cli. Importing it imports no torch: the command does.
Change    options, what is printed.
Not here  the suites -> evaluation/tasks/; how lines become tables -> evaluation/summary.py.
Holds     what was measured before is not measured again in the same folder.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import names, one_line_errors, whole_numbers
from ultragist_rag.errors import InputError

__all__ = ["eval_command", "results"]

_WIDTH = 150
_USUAL = ("rag", "4,8,16,32", "full,gist", 100, None)
"""Suites, ratios, methods, samples and context tokens, unless told otherwise."""

_QUICK = ("all", "4,16", "full,gist,truncate", 4, 600)
"""The same for `--quick`: a little of everything, in about two minutes on two cores."""


@one_line_errors
def eval_command(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    suite: Annotated[
        str | None, typer.Option("--suite", help="Suites or tasks, such as 'rag,recall'; or 'all'.")
    ] = None,
    ratios: Annotated[str | None, typer.Option("--ratios", help="Raw tokens per gist, such as 2,4,8,16,32.")] = None,
    methods: Annotated[str | None, typer.Option("--methods", help="full,gist,gist+verbatim,truncate,bm25,...")] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", help="KV bytes of a context, instead of ratios.", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Samples of each task, spread evenly.", min=1)] = None,
    context: Annotated[int | None, typer.Option("--context", help="Tokens that a context may have.", min=1)] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Folder of data sets, or TASK=FOLDER, TASK=FILE, TASK=hub:NAME.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything that tasks draw.")] = 0,
    source_bias: Annotated[
        float, typer.Option("--source-bias", help="Hold answers to the words of their prompts; 4 suits most.", min=0)
    ] = 0.0,
    output: Annotated[Path, typer.Option("--output", help="Folder of the run; a stopped run goes on.")] = Path(
        "runs/eval"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="A little of everything, in about two minutes.")] = False,
    list_tasks: Annotated[bool, typer.Option("--list", help="Print the tasks and leave.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure a checkpoint on suites of tasks: full text, gist memories, and what else fits into as many bytes."""
    from ultragist_rag.console import print_json, print_table
    from ultragist_rag.evaluation.runner import run_eval
    from ultragist_rag.evaluation.settings import EvalSettings
    from ultragist_rag.pipeline import load_engine

    if list_tasks:
        _print_tasks()
        return
    suites, some_ratios, some_methods, few, small = _QUICK if quick else _USUAL
    settings = EvalSettings(
        suites=tuple(names(suite or suites)),
        ratios=tuple(whole_numbers(names(ratios or some_ratios), _complain)),
        methods=tuple(names(methods or some_methods)),
        budget=budget,
        limit=limit or few,
        context=context or small,
        seed=seed,
        source_bias=source_bias,
        data=_places(data or []),
    )
    _check_packages("bm25s", "lm_eval", "matplotlib", "rapidfuzz", "rouge_score", "sklearn")
    run_eval(load_engine(model), settings, output, model=model)
    from ultragist_rag.evaluation.failures.section import failures_section
    from ultragist_rag.evaluation.summary import cells, read_run
    from ultragist_rag.evaluation.tables import run_table
    from ultragist_rag.evaluation.write import write_report

    run = read_run(output)
    page = write_report(run, more=[failures_section])
    if as_json:
        print_json([cell.to_dict() for cell in cells(run)])
        return
    print_table(run_table(run), _WIDTH)
    typer.echo(f"Lines, plots and the page {page.name} are in {output}")


@one_line_errors
def results(
    runs: Annotated[list[Path], typer.Argument(help="Folders that eval wrote.")],
    output: Annotated[Path, typer.Option("--output", help="The page; pictures lie beside it.")] = Path("results.md"),
) -> None:
    """Make one page of several runs: what is kept, beside the published; other methods; failure patterns; limits.

    The numbers of the runs are kept beside it, in results/runs, so that the page can be made again from them. What
    `ablate` wrote stands at the end if it lies beside it, in results/ablation.json.
    """
    _check_packages("matplotlib")
    from ultragist_rag.evaluation.ablation_page import ablation_section, read_ablation
    from ultragist_rag.evaluation.failures.section import failures_section
    from ultragist_rag.evaluation.records import pack_run, read_run
    from ultragist_rag.evaluation.results_page import write_results

    for run in runs:
        pack_run(run, output.parent / "results" / "runs" / run.resolve().name)
    record = output.parent / "results" / "ablation.json"
    last = [ablation_section(read_ablation(record))] if record.is_file() else []
    write_results([read_run(run) for run in runs], output, more=[failures_section], last=last)
    typer.echo(f"Written to {output}")


def _complain(wrong: str) -> str:
    return f"ratio {wrong!r} is no number: give whole numbers of at least 1, such as 4,8,16."


def _check_packages(*packages: str) -> None:
    """Refuse to begin what could not be finished."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise InputError(f"not installed: {', '.join(missing)}. Run: pip install 'ultragist-rag[eval]'")


def _print_tasks() -> None:
    from rich.table import Table

    from ultragist_rag.console import print_table
    from ultragist_rag.evaluation.extras import EXTRAS
    from ultragist_rag.evaluation.task import registered_tasks

    table = Table("task", "asked by", "metric", "files", "published")
    for task in registered_tasks().values():
        files = "\n".join(some[0] for some in task.files.values()) or "comes with the package"
        table.add_row(task.name, task.kind, task.metric, files, task.source)
    for extra in EXTRAS:
        table.add_row(extra.name, "by other means", "", "data folder" if extra.needs_data else "", extra.source)
    table.add_row("lm-eval/NAME", "lm-eval", "its own", "", "any task that lm-eval knows")
    print_table(table, _WIDTH)


def _places(given: list[str]) -> dict[str, str]:
    """Places of data by task; the folder for all others by the empty name."""
    places: dict[str, str] = {}
    for one in given:
        task, _, place = one.rpartition("=")
        if not place.startswith("hub:") and not Path(place).exists():
            raise InputError(f"data {place!r} do not exist: give --data FOLDER, TASK=PLACE or TASK=hub:NAME.")
        if task in places:
            raise InputError(f"data of {task or 'all tasks'} are given twice: {places[task]!r} and {place!r}.")
        places[task] = place
    return places
