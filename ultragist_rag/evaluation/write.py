"""Write the report of a run into its folder: a table, plots, one page.

Is        `write_report` for a finished run, and the check that what draws is installed.
Flow      records, tables, plots, page -> [write] -> cli.
Change    which files a report has.
Not here  docs/results.md -> results_page.py.
Holds     equal records give equal files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.about import facts, limits
from ultragist_rag.evaluation.page import Section, page
from ultragist_rag.evaluation.records import Run, read_run
from ultragist_rag.evaluation.summary import cells
from ultragist_rag.evaluation.tables import run_markdown
from ultragist_rag.evaluation.wording import escape_markdown

__all__ = ["PAGE", "PLOTS", "TABLE", "write_report"]

TABLE, PLOTS, PAGE = "table.md", "plots", "report.html"
"""What a report adds to the folder of a run."""


def write_report(run: Run | str | Path, *, more: Sequence[Callable[[Run], Section | None]] = ()) -> Path:
    """Write `table.md`, `plots/*.png` and `report.html` beside the records of a run; plots of an older report go.

    Args:
        run: The run, or its folder.
        more: Functions that make further sections of the page; None leaves one out.

    Returns:
        The page.

    Raises:
        InputError: If the folder holds no run, a line is damaged, or matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib. Run: pip install 'ultragist-rag[eval]'")
    from ultragist_rag.evaluation.plots import figures, png

    run = run if isinstance(run, Run) else read_run(run)
    sections = [section for make in more if (section := make(run)) is not None]
    images = {name: png(figure) for name, figure in figures(run).items()}
    text = page(run, images, sections)
    plots = run.folder / PLOTS
    plots.mkdir(exist_ok=True)
    for old in plots.glob("*.png"):
        old.unlink()
    for name, data in images.items():
        (plots / f"{name}.png").write_bytes(data)
    (run.folder / TABLE).write_text(_table(run), encoding="utf-8")
    (run.folder / PAGE).write_text(text, encoding="utf-8")
    return run.folder / PAGE


def _table(run: Run) -> str:
    about = "\n".join(f"- {name}: {escape_markdown(value)}" for name, value in facts(run))
    cannot = "\n".join(f"- {escape_markdown(line)}" for line in limits(run, cells(run)))
    title = escape_markdown(str(run.facts.get("model") or run.name))
    return f"# Evaluation of {title}\n\n{about}\n\n{run_markdown(run)}\n## What this run cannot show\n\n{cannot}\n"
