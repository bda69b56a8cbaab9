"""What the command line shows: a progress bar, a table of answers, JSON.

Is        printing of what pipeline.py returns; rich for people, JSON for machines.
Flow      pipeline -> [console] -> cli.
Change    wording, columns.
Holds     results go to stdout, progress to stderr; JSON holds every field of what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ultragist_rag.pipeline import Answer, IndexReport
from ultragist_rag.store import StoreProgress

__all__ = ["print_answers", "print_json", "print_report", "print_rows", "print_table", "progress_bar"]

_WIDTH_IN_FILES = 160


@contextmanager
def progress_bar() -> Iterator[Callable[[StoreProgress], None]]:
    """Show a bar on stderr while a store compresses; yields what it is to be told."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Compressing", visible=False)

        def show(report: StoreProgress) -> None:
            bar.update(task, completed=report.n_compressed, total=report.n_texts - report.n_hits, visible=True)

        yield show


def print_json(value: Any) -> None:
    """Print a record, a list or a dictionary of records as JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def print_report(report: IndexReport) -> None:
    """Say what indexing did."""
    share = report.document_tokens / max(report.memory_slots, 1)
    typer.echo(
        f"{report.files} files, {report.passages} passages: {report.document_tokens} tokens in {report.memory_slots} "
        f"memory slots ({share:.1f} to 1 at ratio {report.ratio}), kept in {report.into}"
    )
    if report.compressed:
        typer.echo(f"{report.compressed} memories made in {report.seconds:.1f} s, {report.reused} found and reused")
    else:
        typer.echo(f"all {report.reused} memories were stored by an earlier run and are reused: nothing to compress")


def print_answers(answers: Sequence[Answer]) -> None:
    """Print a table, one row per answer."""
    compared = answers[0].full_text_answer is not None
    table = Table()
    for column in ("question", "from memories", "source", "tokens > slots", "first token"):
        table.add_column(column)
    if compared:
        table.add_column("from full text")
        table.add_column("first token")
    for answer in answers:
        cells = [
            answer.question,
            answer.answer,
            "\n".join(answer.sources),
            f"{answer.document_tokens} > {answer.memory_slots}",
            _milliseconds(answer.first_token_seconds),
        ]
        if compared:
            cells += [answer.full_text_answer or "", _milliseconds(answer.full_text_first_token_seconds or 0.0)]
        table.add_row(*map(Text, cells))
    print_table(table)


def print_table(table: Table, width: int = _WIDTH_IN_FILES) -> None:
    """Print a table, as wide as the terminal; as wide as told where there is none."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)


def print_rows(rows: Sequence[Any], table: Table, output: Path | None, width: int, *, as_json: bool) -> None:
    """Print what was measured as a table or as JSON, and write it if there is a file for it.

    Args:
        rows: Records with `to_dict`.
        table: The same as a table.
        output: File for the rows, with the versions they were measured with.
        width: Of the table in characters.
        as_json: Print JSON instead.
    """
    from ultragist_rag.evaluation.report import write_rows

    plain = [row.to_dict() for row in rows]
    if output is not None:
        write_rows(plain, output)
    if as_json:
        print_json(plain)
    else:
        Console(width=width).print(table)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
