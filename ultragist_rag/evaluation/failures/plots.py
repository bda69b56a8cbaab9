"""The study's figures 3, 4 and 5 for a model, and two more: needles by kind, and the reconstruction probe.

Is        lines in, figures out; nothing is shown or written here.
Flow      lines -> [plots] -> report.
Paper     arXiv 2412.17483, figures 3 to 5, tables 3 and 4.
Change    how a figure looks.
Not here  tables -> tables.py; writing files -> report.
Holds     no figure belongs to a global state; without lines there is no figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ultragist_rag.evaluation.failures.lines import Cell, Line, average, cells, label, spread_of
from ultragist_rag.evaluation.failures.position import POSITION
from ultragist_rag.evaluation.failures.probe import PROBE
from ultragist_rag.evaluation.tasks.failures import DIGITS, GROUPS

__all__ = ["cut_figure", "digits_figure", "failure_figures", "position_figure", "probe_figure", "surprise_figure"]

_WIDE, _HIGH, _DPI = 7.0, 4.2, 110
_BARS = {GROUPS[0]: "#1b6ca8", GROUPS[2]: "#8fc1e3", GROUPS[1]: "#b5542a", GROUPS[3]: "#efb08c"}
"""Colour of each condition: dark is relevant, light is not."""


def failure_figures(rows: Sequence[Line], window: int | None = None) -> dict[str, Figure]:
    """Draw all figures for which there are lines.

    Args:
        rows: Lines of a run.
        window: Raw tokens of a window, to mark boundaries.

    Returns:
        Figures by name.
    """
    made: dict[str, Figure | None] = {
        "position": position_figure(rows),
        "boundary_cut": cut_figure(rows, window),
        "surprise": surprise_figure(rows),
        "along_the_way": digits_figure(rows),
        "probe": probe_figure(rows),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def position_figure(rows: Sequence[Line]) -> Figure | None:
    """Draw perplexity by position in the window, and how far it lies above that of full text."""
    found = cells(rows, POSITION, "nll")
    full = found.get(("full", None))
    if full is None:
        return None
    figure, (left, right) = _figure(2)
    colours = _colours(list(found))
    for cell, groups in found.items():
        places = [(number + 0.5) / len(groups) for number in range(len(groups))]
        style: dict[str, Any] = {"color": colours[cell], "label": label(cell), "marker": ".", "linewidth": 1.4}
        left.plot(places, [math.exp(average(scores)) for scores in groups.values()], **style)
        if cell[0] != "full":
            above = [average(scores) - average(full[name]) for name, scores in groups.items()]
            right.plot(places, above, **style)
    left.set_ylabel("perplexity (lower is better)")
    left.set_title("Perplexity by position")
    _legend(figure, left)
    right.axhline(0, color=colours["full", None], linewidth=1)
    right.set_ylabel("loss above full text (nats per token, 0 is best)")
    right.set_title("What gists in front cost")
    for axes in (left, right):
        axes.set_xlabel("position in the window (share of its tokens)")
        axes.set_xlim(0, 1)
    return figure


def cut_figure(rows: Sequence[Line], window: int | None = None) -> Figure | None:
    """Draw the score with the context cut to its last k tokens."""
    found = cells(rows, "failures/boundary_cut", "subem")
    if not found:
        return None
    lengths = sorted({int(group) for groups in found.values() for group in groups})
    figure, (axes,) = _figure(1)
    for multiple in range(window or 0, lengths[-1] + 1, window or lengths[-1] + 1):
        if multiple:
            axes.axvline(multiple, color="#999999", linestyle=":", linewidth=1.2)
    _lines(axes, {cell: {int(k): scores for k, scores in groups.items()} for cell, groups in found.items()})
    axes.set_xlabel("tokens of context left, k" + (" (dotted: whole windows)" if window else ""))
    axes.set_ylabel("answers found (share, higher is better)")
    axes.set_title("Context cut to its last k tokens; the answer is always inside")
    _legend(figure, axes)
    return figure


def digits_figure(rows: Sequence[Line]) -> Figure | None:
    """Draw the exact match of the first k digits of a code."""
    by_digits = {n: cells(rows, "failures/along_the_way", f"first_{n}") for n in DIGITS}
    shown = list(by_digits[DIGITS[0]])
    if not shown:
        return None
    figure, (axes,) = _figure(1)
    _lines(axes, {cell: {n: found[cell][""] for n, found in by_digits.items()} for cell in shown})
    axes.set_xscale("log", base=2)
    axes.set_xticks(DIGITS, labels=[str(n) for n in DIGITS])
    axes.set_xlabel("first digits that must be right, of 32")
    axes.set_ylabel("exact match (share, higher is better)")
    axes.set_title("Recall of a 32-digit UUID")
    _legend(figure, axes)
    return figure


def surprise_figure(rows: Sequence[Line]) -> Figure | None:
    """Draw the score of needles that fit their document, and of needles that do not."""
    found = cells(rows, "failures/surprise", "subem")
    if not found:
        return None
    figure, (axes,) = _figure(1)
    width = 0.8 / len(_BARS)
    for number, (group, colour) in enumerate(_BARS.items()):
        values = [spread_of(groups[group]) if group in groups else (0.0, 0.0, 0.0) for groups in found.values()]
        places = [place + (number - (len(_BARS) - 1) / 2) * width for place in range(len(found))]
        axes.bar(places, [value for value, _, _ in values], width, color=colour, label=group)
        axes.errorbar(places, [value for value, _, _ in values], _around(values), fmt="none", ecolor="#444444", lw=0.8)
    axes.set_xticks(range(len(found)), labels=[label(cell).replace("gists, ", "") for cell in found])
    axes.set_xlabel("context read as full text, or as gists at this ratio")
    axes.set_ylabel("needles found (share, higher is better)")
    axes.set_ylim(0, 1.02)
    axes.set_title("Needles about the document's subject, and about another")
    _legend(figure, axes, "subject, value")
    return figure


def probe_figure(rows: Sequence[Line]) -> Figure | None:
    """Draw the share of tokens that can be read back from gists, by ratio."""
    own, other = (cells(rows, PROBE, metric) for metric in ("accuracy", "other"))
    if not own:
        return None
    figure, (axes,) = _figure(1)
    ratios = [ratio or 1 for _, ratio in own]
    for decoder, colour in (("strong", "#1b6ca8"), ("weak", "#b5542a")):
        for found, style, whose in ((own, "-", "its own"), (other, "--", "of another text")):
            values = [spread_of(groups[decoder]) for groups in found.values() if decoder in groups]
            name = f"{decoder}, {whose}"
            axes.errorbar(
                ratios[: len(values)],
                [value for value, _, _ in values],
                _around(values),
                color=colour,
                linestyle=style,
                marker="o",
                label=name,
                capsize=2,
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, labels=[str(ratio) for ratio in ratios])
    axes.set_xlabel("ratio (raw tokens per gist)")
    axes.set_ylabel("tokens recovered (share, higher is better)")
    axes.set_ylim(bottom=0)
    axes.set_title("Tokens that can be read back from gists")
    _legend(figure, axes, "decoder, gists")
    return figure


def _figure(n: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDE * (1.6 if n > 1 else 1.0), _HIGH), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, n, place + 1) for place in range(n)]
    for one in axes:
        one.grid(True, alpha=0.25)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside right upper",
        fontsize=8,
        title=title,
        title_fontsize=8,
        handlelength=3.2,
        frameon=False,
    )


def _lines(axes: Axes, found: dict[Cell, dict[int, dict[str, float]]]) -> None:
    """Draw one line for each method and ratio, with intervals."""
    colours = _colours(list(found))
    for cell, points in found.items():
        values = [spread_of(scores) for scores in points.values()]
        axes.errorbar(
            list(points),
            [value for value, _, _ in values],
            _around(values),
            color=colours[cell],
            label=label(cell),
            marker="o",
            markersize=4,
            linewidth=1.5,
            elinewidth=0.7,
            capsize=2,
        )
    axes.set_ylim(-0.02, 1.02)


def _colours(shown: Sequence[Cell]) -> dict[Cell, Any]:
    """Full text is black; the higher the ratio, the lighter the line."""
    gists = [cell for cell in shown if cell[0] != "full"]
    scale: Callable[[float], Any] = colormaps["plasma"]
    colours: dict[Cell, Any] = {cell: scale(0.05 + 0.8 * n / max(len(gists) - 1, 1)) for n, cell in enumerate(gists)}
    return {("full", None): "black", **colours}


def _around(values: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """Distances from values to the ends of their intervals, as error bars take them."""
    return [
        [max(value - low, 0.0) for value, low, _ in values],
        [max(high - value, 0.0) for value, _, high in values],
    ]
