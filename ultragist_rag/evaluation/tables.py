"""Show a run as tables: for the terminal, in Markdown, and as rows that pages lay out.

Is        rows of text from cells, and two ways to print them.
Flow      summary, published -> [tables] -> page, write, results_page, cli.
Change    columns, formats, order.
Not here  what the numbers are -> summary.py; sentences under the tables -> about.py, compare.py.
Holds     every table shows the same rows; texts of a run are never read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from ultragist_rag.evaluation.about import is_too_small, notes
from ultragist_rag.evaluation.compare import comparison_lines, comparisons
from ultragist_rag.evaluation.published import published
from ultragist_rag.evaluation.records import Condition, Run
from ultragist_rag.evaluation.summary import Cell, SuiteCell, cells, suite_cells
from ultragist_rag.evaluation.wording import escape_markdown, interval_text

__all__ = ["Grid", "cells_grid", "is_failure", "markdown", "published_grid", "rich_table", "run_markdown", "run_table"]

_FAILURES = "failures"
_NONE = "-"
_WRAPPED = ("task", "group")  # on narrow terminals


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text.

    Attributes:
        head: Names of columns.
        rows: Cells, as many as there are columns.
        n_left: Columns that hold words and stand left; the others hold numbers.
        notes: Sentences that stand under it.
    """

    head: list[str]
    rows: list[list[str]]
    n_left: int
    notes: list[str] = field(default_factory=list)


def cells_grid(found: Sequence[Cell]) -> Grid:
    """Lay cells out, one row each.

    Args:
        found: The cells.

    Returns:
        The table; columns for groups, budgets and skipped samples only where there are any, and no row for the only
        group of a task.
    """
    found = _without_only_groups(found)
    shown = {
        "group": any(cell.group for cell in found),
        "budget, KiB": any(cell.condition.budget is not None for cell in found),
        "skipped": any(cell.n_skipped for cell in found),
    }
    full = {(cell.task.name, cell.group): cell for cell in found if cell.condition.method == "full"}
    rows = [_row(cell, full.get((cell.task.name, cell.group)), full.get((cell.task.name, ""))) for cell in found]
    head = [name for name in _COLUMNS if shown.get(name, True)]
    lines = notes(found)
    return Grid(head, [[row[name] for name in head] for row in rows], head.index("ratio"), lines)


def published_grid(found: Sequence[SuiteCell]) -> Grid:
    """Lay out what is kept by suite and ratio, ours beside what is published.

    Args:
        found: The cells of suites.

    Returns:
        The table: suites that were run with gist memories; empty where nothing is published.
    """
    ours = {(cell.suite, cell.condition.method, cell.condition.ratio): cell for cell in found if _is_ours(cell)}
    measured = sorted({key[1] for key in ours}, key=lambda name: Condition(method=name).order)
    suites = list(dict.fromkeys(key[0] for key in ours))
    rows = []
    for suite in suites:
        theirs = [one.kept.get(suite, {}) for one in published()]
        ratios = sorted(
            {key[2] for key in ours if key[0] == suite and key[2]} | {ratio for one in theirs for ratio in one}
        )
        for ratio in ratios:
            mine = [ours.get((suite, name, ratio)) for name in measured]
            first = next((cell for cell in mine if cell is not None), None)
            kept = [(_NONE if is_too_small(cell) else interval_text(cell.kept)) if cell else "" for cell in mine]
            counts = [f"{first.n} in {first.n_tasks}" if first else ""]
            rows.append([suite, str(ratio), *kept, *counts, *(_share(one.get(ratio)) for one in theirs)])
    head = ["suite", "ratio", *(f"{name} (95 %)" for name in measured), "samples in tasks"]
    small = dict.fromkeys(
        f"{cell.suite}: full text gives {cell.full_score:.2f}" for cell in ours.values() if is_too_small(cell)
    )
    lines = [f"{line}: no share can be given." for line in small]
    lines += [f"{one.name} ({one.base}): {one.source}." for one in published()]
    return Grid([*head, *(f"{one.name} ({one.base})" for one in published())], rows, 1, lines)


def is_failure(cell: Cell) -> bool:
    """Tell whether a cell belongs to the failure patterns, which have figures and tables of their own."""
    return cell.task.suite == _FAILURES


def run_table(run: Run) -> Table:
    """Make the table of a run for the terminal; groups and failure patterns are left to table.md and the page.

    Args:
        run: The run.

    Returns:
        The table, with its notes as caption.

    Raises:
        InputError: If records do not fit their tasks.
    """
    return rich_table(cells_grid([cell for cell in cells(run) if not cell.group and not is_failure(cell)]))


def run_markdown(run: Run) -> str:
    """Write the tables of a run, and what stands under them, as Markdown.

    Args:
        run: The run.

    Returns:
        Tables of tasks, of failure patterns, of what is kept beside the published, and the lines on other methods.

    Raises:
        InputError: If records do not fit their tasks.
    """
    found, lines = cells(run), comparison_lines(comparisons(run))
    parts = ["## Tasks", markdown(cells_grid([cell for cell in found if not is_failure(cell)]))]
    if lines:
        parts += ["## Other methods at equal bytes", _bullets(lines)]
    parts += ["## Kept of the full text, beside the published", markdown(published_grid(suite_cells(run)))]
    failures = [cell for cell in found if is_failure(cell)]
    if failures:
        parts += ["## Failure patterns", markdown(cells_grid(failures))]
    if run.left_out:
        parts += ["## Left out", _bullets(run.left_out)]
    return "\n\n".join(parts) + "\n"


def rich_table(grid: Grid) -> Table:
    """Make a table for the terminal."""
    table = Table(caption=Text("\n".join(grid.notes)) if grid.notes else None, caption_justify="left")
    for place, name in enumerate(grid.head):
        table.add_column(Text(name), justify="left" if place < grid.n_left else "right", no_wrap=name not in _WRAPPED)
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def markdown(grid: Grid) -> str:
    """Write a table in Markdown, with its notes as a list."""
    rule = ["---"] * grid.n_left + ["--:"] * (len(grid.head) - grid.n_left)
    lines = [f"| {' | '.join(map(escape_markdown, row))} |" for row in (grid.head, *grid.rows)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    text = "\n".join(lines)
    return f"{text}\n\n{_bullets(grid.notes)}" if grid.notes else text


_COLUMNS = ["task", "group", "method", "ratio", "budget, KiB", "n", "skipped", "score (95 %)"]
_COLUMNS += ["kept of full (95 %)", "slots", "KiB", "first token, ms"]


def _row(cell: Cell, full: Cell | None, whole: Cell | None) -> dict[str, str]:
    condition = cell.condition
    kept = _NONE if is_too_small(full) or is_too_small(whole) else interval_text(cell.kept)
    return {
        "task": cell.task.name,
        "group": cell.group,
        "method": condition.method,
        "ratio": "" if condition.ratio is None else str(condition.ratio),
        "budget, KiB": "" if condition.budget is None else f"{condition.budget / 1024:.1f}",
        "n": str(cell.n),
        "skipped": str(cell.n_skipped) if cell.n_skipped else "",
        "score (95 %)": interval_text(cell.score) + (" ppl" if cell.task.lower_is_better and cell.n else ""),
        "kept of full (95 %)": kept,
        "slots": _fixed(cell.slots),
        "KiB": _fixed(cell.n_bytes / 1024),
        "first token, ms": _fixed(1000 * cell.first_token_seconds),
    }


def _without_only_groups(found: Sequence[Cell]) -> list[Cell]:
    """Leave out the group of a task that has but one: its rows would say everything twice."""
    groups: dict[str, set[str]] = {}
    for cell in found:
        groups.setdefault(cell.task.name, set()).add(cell.group)
    return [
        cell for cell in found if not (cell.group and len(groups[cell.task.name]) == 2 and "" in groups[cell.task.name])
    ]


def _is_ours(cell: SuiteCell) -> bool:
    """Whether it stands beside the published: gist memories at a ratio, and no failure pattern."""
    condition = cell.condition
    by_ratio = condition.ratio is not None and condition.budget is None
    return condition.is_ours and by_ratio and cell.suite != _FAILURES


def _fixed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)
