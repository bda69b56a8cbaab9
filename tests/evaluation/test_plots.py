"""Figures hold the series of their cells, each method in one colour, and touch nothing global."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from run_records import METHODS, RATIOS, make_run

from ultragist_rag.evaluation.plots import figures, overview_figure, png, styles
from ultragist_rag.evaluation.published import published
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.summary import Cell, cells, read_run, suite_cells

DRAWN = set(METHODS) - {"full", "closed"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("run"), n=6))


@pytest.fixture(scope="module")
def drawn(run: Run) -> dict[str, Figure]:
    return figures(run)


def _series(panel: Axes) -> dict[str, ErrorbarContainer]:
    return {str(one.get_label()): one for one in panel.containers if isinstance(one, ErrorbarContainer)}


def _of(run: Run, task: str, method: str) -> list[Cell]:
    return [
        cell
        for cell in cells(run)
        if (cell.task.name, cell.group, cell.condition.method) == (task, "", method) and cell.n
    ]


def test_every_task_but_failures_has_its_figure(run: Run, drawn: dict[str, Figure]) -> None:
    tasks = {f"task-{name.replace('/', '-')}" for name in run.tasks if not name.startswith("failures/")}
    assert set(drawn) == {"overview", "perplexity", *tasks}


@pytest.mark.parametrize("task", ["rag/invented", "chat/sessions", "perplexity/text"])
def test_tasks_are_drawn_against_bytes_and_time(run: Run, drawn: dict[str, Figure], task: str) -> None:
    by_bytes, by_time = drawn[f"task-{task.replace('/', '-')}"].axes
    assert "KiB" in by_bytes.get_xlabel()
    assert "ms" in by_time.get_xlabel()
    assert by_bytes.get_xscale() == by_time.get_xscale() == "log"
    assert set(_series(by_bytes)) == set(_series(by_time)) == DRAWN
    for method in DRAWN:
        found = _of(run, task, method)
        for panel, places, room in (
            (by_bytes, [cell.n_bytes / 1024 for cell in found], 0.2),  # set side by side
            (by_time, [1000 * cell.first_token_seconds for cell in found], 1e-9),
        ):
            line, _, (bars,) = _series(panel)[method].lines
            order = sorted(range(len(found)), key=lambda place: places[place])
            assert list(line.get_xdata()) == pytest.approx([places[one] for one in order], rel=room)
            assert list(line.get_ydata()) == pytest.approx([found[one].score[0] for one in order])
            ends = [[float(one[1]) for one in path.vertices] for path in bars.get_paths()]
            wanted = [list(found[one].score[1:]) for one in order]
            assert [one for end in ends for one in end] == pytest.approx([one for end in wanted for one in end])


def test_full_text_is_a_dashed_line_and_no_text_a_dotted_one(run: Run, drawn: dict[str, Figure]) -> None:
    panel = drawn["task-rag-invented"].axes[0]
    for method, label, style in (("full", "full text", "--"), ("closed", "no text", ":")):
        (cell,) = _of(run, "rag/invented", method)
        (line,) = (one for one in panel.lines if str(one.get_label()).startswith(label))
        assert line.get_linestyle() == style
        assert set(line.get_ydata()) == {cell.score[0]}


def test_overview_has_a_panel_for_each_suite_beside_the_published(run: Run, drawn: dict[str, Figure]) -> None:
    panels = {panel.get_title(): panel for panel in drawn["overview"].axes if panel.get_visible()}
    assert set(panels) == {"rag", "icl", "chat", "perplexity"}  # full text gives nothing on recall
    curves = {str(line.get_label()): line for line in panels["rag"].lines}
    best = published()[0]
    assert list(curves[f"{best.name} ({best.base})"].get_ydata()) == [best.kept["rag"][ratio] for ratio in RATIOS]
    assert not [line for line in panels["chat"].lines if "published" in str(line.get_label())]
    for cell in suite_cells(run):
        if cell.suite == "rag" and cell.condition.ratio is not None:
            line = _series(panels["rag"])[cell.condition.method].lines[0]
            assert cell.kept[0] in line.get_ydata()


def test_perplexity_is_drawn_by_ratio(run: Run, drawn: dict[str, Figure]) -> None:
    (panel,) = drawn["perplexity"].axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [str(ratio) for ratio in RATIOS]
    line = _series(panel)["gist"].lines[0]
    assert list(line.get_ydata()) == [cell.score[0] for cell in _of(run, "perplexity/text", "gist")]


def test_methods_look_the_same_everywhere_and_differ_from_each_other(run: Run, drawn: dict[str, Figure]) -> None:
    look = styles(run)
    assert len({(one.colour, one.mark) for one in look.values()}) == len(look) == len(DRAWN)
    for name, figure in drawn.items():
        for panel in figure.axes:
            for method, one in _series(panel).items():
                line = one.lines[0]
                assert (line.get_color(), line.get_marker()) == (look[method].colour, look[method].mark), name


def test_pictures_are_the_same_twice(run: Run, drawn: dict[str, Figure]) -> None:
    first = png(drawn["perplexity"])
    assert first == png(figures(run)["perplexity"])
    assert Image.open(io.BytesIO(first)).size[0] > 500


def test_runs_under_a_budget_have_no_overview_by_ratio(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, n=3, budget=4096, only=("rag/invented",)))
    assert overview_figure(suite_cells(run), styles(run)) is None
    assert set(figures(run)) == {"task-rag-invented"}


def test_names_of_tasks_are_neither_formulas_nor_paths(tmp_path: Path) -> None:
    make_run(tmp_path, n=3, only=("rag/invented",), tasks={})
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text("utf-8").replace("rag/invented", "rag/../$x_{$"), encoding="utf-8")
    (name, figure) = next(iter(figures(read_run(tmp_path)).items()))[0], figures(read_run(tmp_path))["task-rag-..-x_"]
    assert "/" not in name
    assert len(png(figure)) > 1000


def test_drawing_needs_no_pyplot() -> None:
    code = "import sys, ultragist_rag.evaluation.plots as p; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
