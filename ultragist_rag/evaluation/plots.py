"""Draw a run: score against bytes and time for each task, what is kept by suite, perplexity by ratio.

Is        figures of matplotlib's object interface; nothing global is touched, nothing is shown.
Flow      summary, published -> [plots] -> page, write, results_page.
Paper     arXiv 2412.17483, figure 2 (perplexity by ratio), table 5 (the published curves).
Change    what is drawn, colours, marks.
Not here  figures of the failure patterns -> failures.
Holds     a method has the same colour and mark in every figure of a run; every point has its 95 % interval.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from ultragist_rag.evaluation.about import is_too_small
from ultragist_rag.evaluation.intervals import Interval
from ultragist_rag.evaluation.published import published
from ultragist_rag.evaluation.records import Condition, Run
from ultragist_rag.evaluation.summary import Cell, SuiteCell, cells, suite_cells
from ultragist_rag.evaluation.tables import is_failure
from ultragist_rag.evaluation.wording import file_name

__all__ = ["Style", "figures", "overview_figure", "perplexity_figure", "png", "styles", "task_figure"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", "#7F7F7F")
"""After Okabe and Ito: told apart with any kind of colour vision; marks differ besides."""

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h")
_GREY, _DARK = "#767676", "#333333"
_DPI = 130
_N_COLOURS = 128
_SIZE = 9.5
_HALO = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True, slots=True)
class Style:
    """How one method is drawn."""

    colour: str
    mark: str


def figures(run: Run) -> dict[str, Figure]:
    """Draw everything that a run has.

    Args:
        run: The run.

    Returns:
        By name for a file: `overview`, `perplexity` where there is any, and one for each task.

    Raises:
        InputError: If records do not fit their tasks.
    """
    found = [cell for cell in cells(run) if not is_failure(cell)]
    look = styles(run)
    drawn: dict[str, Figure] = {}
    overview = overview_figure(suite_cells(run), look)
    if overview is not None:
        drawn["overview"] = overview
    perplexity = perplexity_figure(found, look)
    if perplexity is not None:
        drawn["perplexity"] = perplexity
    for name in run.tasks:
        of_task = [cell for cell in found if cell.task.name == name and not cell.group and cell.n]
        if any(cell.condition.method != "full" for cell in of_task):
            drawn[f"task-{file_name(name)}"] = task_figure(of_task, look)
    return drawn


def styles(run: Run) -> dict[str, Style]:
    """Give each method of a run its colour and mark."""
    names = sorted({record.condition.method for record in run.records}, key=lambda name: Condition(method=name).order)
    drawn = [name for name in names if name not in ("full", "closed")]
    return {
        name: Style(_COLOURS[place % len(_COLOURS)], _MARKS[place % len(_MARKS)]) for place, name in enumerate(drawn)
    }


def task_figure(found: Sequence[Cell], look: Mapping[str, Style]) -> Figure:
    """Draw the score of one task against bytes and against time to the first token.

    Args:
        found: Cells of the task, all samples, with scores.
        look: Style by method.

    Returns:
        Two panels: a line for each method with a mark for each ratio; full text dashed, no text dotted.
    """
    task = found[0].task
    figure = Figure(figsize=(10.5, 4.1), layout="constrained")
    panels = list(figure.subplots(1, 2, sharey=True))
    _draw_by(panels[0], found, look, [cell.n_bytes / 1024 for cell in found])
    _draw_by(panels[1], found, look, [1000 * cell.first_token_seconds for cell in found], apart=False)
    score = (
        f"perplexity of {_plain(task.name)}" if task.lower_is_better else f"{_plain(task.metric)}, {_plain(task.name)}"
    )
    _finish(panels[0], "keys and values of the context, KiB (equal ones drawn side by side)", score)
    _finish(panels[1], "time to first token, ms (median)", "")
    if not task.lower_is_better:
        panels[0].set_ylim(0, _top([cell.score for cell in found]))
    _legend(figure, panels)
    return figure


def overview_figure(found: Sequence[SuiteCell], look: Mapping[str, Style]) -> Figure | None:
    """Draw what is kept of the full text by ratio, one panel for each suite, beside the published curves.

    Args:
        found: Cells of suites.
        look: Style by method.

    Returns:
        The figure; None if nothing was measured by ratio.
    """
    drawn = [cell for cell in found if cell.condition.ratio is not None and not is_too_small(cell)]
    drawn = [cell for cell in drawn if not math.isnan(cell.kept[0]) and cell.condition.method in look]
    suites = list(dict.fromkeys(cell.suite for cell in drawn if cell.suite != "failures"))
    if not suites:
        return None
    n_columns = min(4, len(suites)) if len(suites) != 3 else 3
    n_rows = -(-len(suites) // n_columns)
    figure = Figure(figsize=(max(5.5, 2.6 * n_columns + 2.4), 2.8 * n_rows + 0.3), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    ratios = sorted({cell.condition.ratio for cell in drawn if cell.condition.ratio is not None})
    for panel, suite in zip(panels.flat, suites, strict=False):
        _draw_suite(panel, suite, drawn, look)
        _ratio_axis(panel, ratios)
        panel.set_title(_plain(suite), fontsize=_SIZE + 1, color=_DARK)
    for place, panel in enumerate(panels.flat):
        panel.set_visible(place < len(suites))
        _finish(
            panel,
            "raw tokens per gist" if place + n_columns >= len(suites) else "",
            "kept of full" if not place % n_columns else "",
        )
    known = [share for one in published() for suite in suites for share in one.kept.get(suite, {}).values()]
    panels[0][0].set_ylim(0, _top([cell.kept for cell in drawn], at_least=max([1.0, *known])))
    _legend(figure, list(panels.flat))
    return figure


def perplexity_figure(found: Sequence[Cell], look: Mapping[str, Style]) -> Figure | None:
    """Draw perplexity by ratio, one panel for each task.

    Args:
        found: Cells.
        look: Style by method.

    Returns:
        The figure; None if no perplexity was measured by ratio.
    """
    drawn = [cell for cell in found if cell.task.lower_is_better and not cell.group and cell.n]
    names = list(dict.fromkeys(cell.task.name for cell in drawn if cell.condition.ratio is not None))
    if not names:
        return None
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(3.4 * n_columns + 2.2, 3.2 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        of_task = [cell for cell in drawn if cell.task.name == name]
        _draw_by(panel, of_task, look, [float(cell.condition.ratio or math.nan) for cell in of_task], by_ratio=True)
        _ratio_axis(panel, sorted({cell.condition.ratio for cell in of_task if cell.condition.ratio is not None}))
        panel.set_title(_plain(name), fontsize=_SIZE + 1, color=_DARK)
    for place, panel in enumerate(panels.flat):
        panel.set_visible(place < len(names))
        _finish(panel, "raw tokens per gist", "perplexity" if not place % n_columns else "")
    _legend(figure, list(panels.flat))
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, of few colours so that pages stay small."""
    drawn, out = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(_N_COLOURS, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return out.getvalue()


def _draw_by(
    panel: Axes,
    found: Sequence[Cell],
    look: Mapping[str, Style],
    places: Sequence[float],
    *,
    by_ratio: bool = False,
    apart: bool = True,
) -> None:
    """Draw scores at places on a logarithmic axis; what has no place (no bytes, not timed) is left out."""
    for name, place_of in (_side_by_side(look, places) if apart else dict.fromkeys(look, 1.0)).items():
        points = sorted(
            (place_of * place, cell.score, cell.condition.ratio)
            for place, cell in zip(places, found, strict=True)
            if cell.condition.method == name and place > 0
        )
        if points:
            _draw_line(panel, name, look[name], [(place, score) for place, score, _ in points])
        if name == "gist" and not by_ratio:
            for place, score, ratio in points:
                if ratio is not None:
                    _label(panel, place, score[0], f"{ratio}:1", look[name])
    for cell in found:
        if cell.condition.method in ("full", "closed"):
            _draw_level(panel, cell, with_value=not by_ratio)
    if any(place > 0 for place in places):
        panel.set_xscale("log")
        panel.margins(x=0.08)
        panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_minor_locator(NullLocator())


def _draw_level(panel: Axes, cell: Cell, *, with_value: bool) -> None:
    closed = cell.condition.method == "closed"
    text = "no text" if closed else "full text"
    text = f"{text} ({cell.score[0]:.2f})" if with_value else text
    line, colour = (":", _GREY) if closed else ("--", _DARK)
    panel.axhline(cell.score[0], linestyle=line, color=colour, linewidth=1.3, label=text, zorder=1)


def _side_by_side(look: Mapping[str, Style], places: Sequence[float]) -> dict[str, float]:
    """A factor by method that sets marks at equal places slightly side by side, in step with the span of the axis."""
    known = [place for place in places if place > 0]
    span = max(known) / min(known) if known else 1.0
    step = max(span, 4.0) ** 0.006
    return {name: step ** (place - (len(look) - 1) / 2) for place, name in enumerate(look)}


def _draw_suite(panel: Axes, suite: str, drawn: Sequence[SuiteCell], look: Mapping[str, Style]) -> None:
    panel.axhline(1.0, linestyle="--", color=_DARK, linewidth=1.3, label="full text", zorder=1)
    for one, line in zip(published(), ((0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5))), strict=False):
        curve = one.kept.get(suite)
        if curve:
            label = f"{one.name} ({one.base})"
            panel.plot(
                list(curve), list(curve.values()), linestyle=line, color=_GREY, linewidth=1.5, label=label, zorder=2
            )
    of_suite = [cell for cell in drawn if cell.suite == suite]
    places = [float(cell.condition.ratio or math.nan) for cell in of_suite]
    for name, place_of in _side_by_side(look, places).items():
        points = [
            (place_of * place, cell.kept)
            for place, cell in zip(places, of_suite, strict=True)
            if cell.condition.method == name
        ]
        if points:
            _draw_line(panel, name, look[name], points)


def _draw_line(panel: Axes, name: str, style: Style, points: Sequence[tuple[float, Interval]]) -> None:
    xs, ys = [place for place, _ in points], [score[0] for _, score in points]
    below = [max(0.0, value - low) for _, (value, low, _) in points]
    above = [max(0.0, high - value) for _, (value, _, high) in points]
    ours = Condition(method=name).is_ours
    panel.errorbar(
        xs,
        ys,
        yerr=[below, above],
        label=_plain(name),
        color=style.colour,
        marker=style.mark,
        markersize=6.5 if ours else 5.5,
        linewidth=2.2 if ours else 1.2,
        elinewidth=0.9,
        capsize=2.0,
        zorder=4 if ours else 3,
    )


def _label(panel: Axes, place: float, height: float, text: str, style: Style) -> None:
    panel.annotate(text, (place, height), (0, 7), textcoords="offset points", ha="center", fontsize=_SIZE - 2).set(
        color=style.colour, path_effects=_HALO, zorder=6
    )


def _ratio_axis(panel: Axes, ratios: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.margins(x=0.08)
    panel.set_xticks(list(ratios), [str(ratio) for ratio in ratios])
    panel.xaxis.set_minor_locator(NullLocator())


def _finish(panel: Axes, below: str, left: str) -> None:
    panel.set_xlabel(below, fontsize=_SIZE, color=_DARK)
    panel.set_ylabel(left, fontsize=_SIZE, color=_DARK)
    panel.tick_params(labelsize=_SIZE - 1, colors=_DARK)
    panel.grid(visible=True, which="major", color="#E3E3E3", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color("#B0B0B0")


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, outside, each method once."""
    entries: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside right upper",
        fontsize=_SIZE - 1,
        frameon=False,
        labelcolor=_DARK,
    )


def _top(intervals: Sequence[Interval], at_least: float = 0.2) -> float:
    highs = [high for value, _, high in intervals if not math.isnan(value)]
    return 1.06 * max([*highs, at_least])


def _plain(text: str) -> str:
    """A text of a run as a label: no formulas, one line, and no leading underscore, which would hide it."""
    return re.sub(r"^_", " _", " ".join(text.replace("$", r"\$").split()))[:60]
