"""The study's tables 3 and 4 for a model: reconstruction by decoder, needles by kind and relevance.

Is        lines in, a header and rows of strings out.
Flow      lines -> [tables] -> report.
Paper     arXiv 2412.17483, tables 3 and 4.
Change    what a cell says.
Holds     a cell without lines is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from ultragist_rag.evaluation.failures.lines import Line, average, cells
from ultragist_rag.evaluation.failures.probe import PROBE

__all__ = ["TextTable", "failure_tables", "probe_table", "surprise_table"]

TextTable = tuple[list[str], list[list[str]]]
"""Header and rows."""


def failure_tables(rows: Sequence[Line]) -> dict[str, TextTable]:
    """All tables for which there are lines, by name."""
    made = {"probe": probe_table(rows), "surprise": surprise_table(rows)}
    return {name: table for name, table in made.items() if len(table[0]) > 2}


def probe_table(rows: Sequence[Line]) -> TextTable:
    """Tabulate the share of tokens that each decoder recovers, by ratio.

    Args:
        rows: Lines of a run.

    Returns:
        For each decoder a row with the right gists and one with those of another text, in per cent.
    """
    own, other = (cells(rows, PROBE, metric) for metric in ("accuracy", "other"))
    ratios = list(own)
    body = []
    for decoder in ("weak", "strong"):
        for name, found in (("its own", own), ("another text", other)):
            values = [average(found[cell].get(decoder, {})) for cell in ratios]
            body.append([decoder, name, *(f"{value:.1%}" if value == value else "" for value in values)])
    return ["decoder", "gists of", *(f"{ratio} to 1" for _, ratio in ratios)], body if ratios else []


def surprise_table(rows: Sequence[Line]) -> TextTable:
    """Tabulate the score of needles by kind and relevance, with the difference that irrelevance makes.

    Args:
        rows: Lines of a run.

    Returns:
        A row for each kind and relevance, in per cent; for irrelevant ones the difference to relevant ones in brackets.
    """
    found = cells(rows, "failures/surprise", "subem")
    body = []
    for kind in ("word", "number"):
        for relevance in ("relevant", "irrelevant"):
            row = [kind, relevance]
            for groups in found.values():
                base, value = (average(groups.get(f"{one} {kind}", {})) * 100 for one in ("relevant", relevance))
                known = value == value and base == base
                row.append("" if value != value else f"{value:.1f} ({value - base:+.1f})" if known else f"{value:.1f}")
            body.append(row)
    names = ["full text" if ratio is None else f"{ratio} to 1" for _, ratio in found]
    return ["needle", "subject", *names], body if found else []
