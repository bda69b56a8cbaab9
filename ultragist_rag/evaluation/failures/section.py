"""The failure patterns of a run as a part of its report: advice, the study's tables and figures.

Is        lines of `failures/` in, a section of the page out.
Flow      records, lines, advice, tables, plots -> [section] -> cli_eval.
Change    captions, what is shown of the patterns.
Holds     a run without failure patterns has no such section.
"""

from __future__ import annotations

from dataclasses import asdict

from ultragist_rag.evaluation.failures.advice import advice
from ultragist_rag.evaluation.failures.plots import failure_figures
from ultragist_rag.evaluation.failures.tables import failure_tables
from ultragist_rag.evaluation.page import Section
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.tables import Grid

__all__ = ["failures_section"]

_TABLES = {
    "probe": "Tokens that can be read back from gists (table 3 of the study)",
    "surprise": "Needles by kind and by whether their document is about them (table 4 of the study)",
}
_FIGURES = {
    "position": "Perplexity by position in the window",
    "boundary_cut": "Score with the context cut to its last tokens",
    "surprise": "Needles by kind and relevance",
    "along_the_way": "First digits of a long number",
    "probe": "Tokens read back from gists",
}


def failures_section(run: Run) -> Section | None:
    """Make the section on failure patterns.

    Args:
        run: The run.

    Returns:
        The section; None if the run measured none of them.
    """
    rows = [
        {**asdict(record), "method": record.condition.method, "ratio": record.condition.ratio}
        for record in run.records
        if record.task.startswith("failures/") and not record.skipped
    ]
    if not rows:
        return None
    window = run.facts.get("window")
    figures = failure_figures(rows, window if isinstance(window, int) else None)
    return Section(
        title="Failure patterns",
        lines=advice(rows),
        figures={_FIGURES[name]: figure for name, figure in figures.items()},
        tables={_TABLES[name]: Grid(*table, n_left=2) for name, table in failure_tables(rows).items()},
    )
