"""Make docs/performance.md from result files.

Is        Markdown: the bars, and for each suite that was run what ran on what, a table and plots.
Flow      record, suite, suites, plots -> [report] -> __main__.
Change    what the page shows.
Not here  figures -> plots.py; what a suite says of itself -> suites/.
Holds     equal files give an equal page; every measured number of it stands in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.record import Machine, Record, Row, Spread
from benchmarks.suite import Bar, Suite
from benchmarks.suites import SUITES
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.card import markdown_table
from ultragist_rag.evaluation.wording import escape_markdown

__all__ = ["page", "plot_names", "write_page"]

_PLOTS = "performance"
_INTRODUCTION = """# Performance

This page is made by `python -m benchmarks report` from the files in `benchmarks/results/`; nothing of it is typed by
hand. `make bench` runs the suites with the bundled model on a CPU and makes the page again. What is compared is timed
in one process, in turn, warmed up, with the device synchronised. Numbers are medians with quartiles in parentheses;
*times better* is the ratio of the medians, with the quartiles of the ratios of single rounds: above 1 is better than
the baseline, for times as for rates. Models other than the bundled one have random weights of the named shape: speed
does not depend on them. The floor is what the machine allows at best, as it was measured."""


def page(records: Sequence[Record], suites: Mapping[str, Suite] = SUITES, images: Sequence[str] = ()) -> str:
    """Write the page.

    Args:
        records: Results, in the order of the page within each suite.
        suites: Suites by name, in the order of the page.
        images: Names of the plots that are shown, as `plot_names` gives them.

    Returns:
        Markdown.

    Raises:
        InputError: If a result is of a suite that is not there.
    """
    for record in records:
        if record.suite not in suites:
            raise InputError(f"{record.file_name} is of suite {record.suite!r}, which is unknown. Remove the file.")
    parts = [_INTRODUCTION, "## Bars", _bars(records, suites)]
    for suite in suites.values():
        mine = [record for record in records if record.suite == suite.name]
        if mine:
            parts += [f"## {suite.title}", suite.about]
        for record in mine:
            stem = record.file_name.removesuffix(".json")
            parts += [f"### {record.machine.device}, {record.shape}", _facts(record), _table(record)]
            parts += record.notes
            parts += [f"![{name}]({_PLOTS}/{name}.png)" for name in images if name.startswith(f"{stem}-")]
    return "\n\n".join(parts) + "\n"


def plot_names(folder: Path) -> list[str]:
    """Name the plots that lie beside a page."""
    return sorted(path.stem for path in (folder / _PLOTS).glob("*.png"))


def write_page(records: Sequence[Record], path: Path) -> None:
    """Write the page and its plots; plots of an earlier page go.

    Args:
        records: Results.
        path: Of the page.
    """
    from benchmarks.plots import figures, png

    folder = path.parent / _PLOTS
    page(records)  # refuses what does not fit, before anything is written
    drawn = {}
    for record in records:
        drawn.update(figures(SUITES[record.suite], record))
    for old in folder.glob("*.png"):
        old.unlink()
    for name, figure in drawn.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(png(figure))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(records, images=plot_names(path.parent)), encoding="utf-8")


def _bars(records: Sequence[Record], suites: Mapping[str, Suite]) -> str:
    head = ["bar", "measured on", "at", "limit", "measured", "met"]
    rows = []
    for suite in suites.values():
        for bar in suite.bars:
            mine = [r for r in records if r.suite == suite.name and bar.means(r.machine, r.shape)]
            found = [(record, row) for record in mine if (row := bar.chosen(record.rows)) is not None]
            rows += [_bar(bar, record, row) for record, row in found]
            if not found:
                where = "a GPU" if bar.on == "gpu" else "a CPU"
                rows.append([bar.name, f"{where}, {bar.shape}", "", _limit(bar), "not measured", ""])
    return markdown_table(head, [[escape_markdown(cell) for cell in row] for row in rows], 3) if rows else "None."


def _bar(bar: Bar, record: Record, row: Row) -> list[str]:
    where = f"{record.machine.device}, {record.shape}"
    spread = {"value": row.value, "ratio": row.ratio}.get(bar.of)
    value = spread_text(spread) if spread else _share(row)
    at = ", ".join(f"{name} {value}" for name, value in row.settings.items())
    return [bar.name, where, at, _limit(bar), value, "yes" if bar.judge(row).met else "no"]


def _limit(bar: Bar) -> str:
    return f"at least {number(bar.at_least)}" if bar.at_least is not None else f"at most {number(bar.at_most or 0.0)}"


def _facts(record: Record) -> str:
    machine = record.machine
    model = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in record.model.items())
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"`{record.command}`, {record.date}, {record.size} grid",
        f"machine: {machine.device}; {machine.cpu}, {machine.n_cores} cores, {machine.n_threads} threads of torch",
        f"limits: {_limits(machine)}",
        f"model: {model}, {machine.dtype}",
        f"versions: {versions}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _limits(machine: Machine) -> str:
    text = f"matrix products {number(machine.matmul_flops / 1e12)} TFLOP/s ({machine.dtype}), "
    text += f"copies in memory {number(machine.copy_bytes / 1e9)} GB/s read plus written"
    if machine.upload_bytes is None:
        return text
    return f"{text}, from page-locked memory to the device {number(machine.upload_bytes / 1e9)} GB/s"


def _table(record: Record) -> str:
    names = list(dict.fromkeys(name for row in record.rows for name in row.settings))
    floors = any(row.floor for row in record.rows)
    head = ["measured", *names, "median (quartiles)", "unit", "rounds", "times better", "than"] + (
        ["floor", "share of floor"] if floors else []
    )
    rows = []
    for row in record.rows:
        cells = [row.name, *(str(row.settings.get(name, "")) for name in names), spread_text(row.value), row.unit]
        cells += [str(row.value.n), spread_text(row.ratio) if row.ratio else "", row.baseline]
        if floors:
            cells += [number(row.floor_value) if row.floor_value else "", _share(row)]
        rows.append([escape_markdown(cell) for cell in cells])
    floor_names = dict.fromkeys((row.floor, row.name) for row in record.rows if row.floor)
    notes = [f"Floor of {name}: {floor}." for floor, name in floor_names]
    return "\n\n".join([markdown_table(head, rows, 1), " ".join(notes)])


def _share(row: Row) -> str:
    return "" if row.share is None else f"{row.share:.3f}"


def spread_text(spread: Spread) -> str:
    """A median with its quartiles; the median alone if it is of one measurement."""
    if spread.n == 1:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.q1)}-{number(spread.q3)})"


def number(value: float) -> str:
    """A number with three digits that count, or all before the point."""
    size = abs(value)
    if size >= 100 or not size:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"
