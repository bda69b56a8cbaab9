"""Draw what a record holds.

Is        figures of matplotlib's object interface: medians with quartiles, a line for each variant.
Flow      record, suite -> [plots] -> report.
Change    how lines are drawn.
Not here  what is drawn -> `Plot` of each suite.
Holds     a record that has nothing to draw gives no figure; one point alone is no line.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.record import Record, Row
from benchmarks.suite import Plot, Suite
from ultragist_rag.evaluation.plots import png

__all__ = ["figures", "png"]

_SIZE = (7.5, 4.0)


def figures(suite: Suite, record: Record) -> dict[str, Figure]:
    """Draw the plots of a suite.

    Args:
        suite: The suite.
        record: What it measured.

    Returns:
        Figures by name for a file.
    """
    drawn = {plot.name: _draw(plot, record) for plot in suite.plots}
    found = {name: figure for name, figure in drawn.items() if figure is not None}
    if suite.figures is not None:
        found.update(suite.figures(record))
    return {f"{record.machine.kind}-{record.shape}-{suite.name}-{name}": figure for name, figure in found.items()}


def _better(one: Row | None, other: Row) -> Row:
    if one is None:
        return other
    choose = max if other.better == "higher" else min
    return choose(one, other, key=lambda row: row.value.median)


def _draw(plot: Plot, record: Record) -> Figure | None:
    lines: dict[str, dict[float, Row]] = {}
    for row in record.rows:
        place = row.settings.get(plot.x)
        wanted = {name: row.settings.get(name) for name in plot.where} == dict(plot.where)
        if row.unit == plot.unit and wanted and isinstance(place, int | float):
            label = ", ".join([row.name, *(f"{name} {row.settings[name]}" for name in plot.by if name in row.settings)])
            line = lines.setdefault(label, {})
            line[place] = _better(line.get(place), row)
    places = sorted({place for line in lines.values() for place in line})
    if len(places) < 2:
        return None
    figure = Figure(figsize=_SIZE, layout="constrained")
    panel = figure.subplots()
    for label, line in lines.items():
        rows = [line[place] for place in sorted(line)]
        values = [row.value.median for row in rows]
        ends = [[row.value.median - min(row.value.q1, row.value.median) for row in rows]]
        ends.append([max(row.value.q3, row.value.median) - row.value.median for row in rows])
        panel.errorbar(sorted(line), values, yerr=ends, marker="o", capsize=3, label=label)
    if places[0] > 0:
        panel.set_xscale("log", base=2)
        panel.set_xticks(places, [f"{place:g}" for place in places])
    panel.set_ylim(bottom=0)
    panel.set_xlabel(plot.x)
    panel.set_ylabel(plot.unit)
    panel.set_title(
        ", ".join([f"{record.machine.device}, {record.shape}", *(f"{k} {v}" for k, v in plot.where.items())])
    )
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    return figure
