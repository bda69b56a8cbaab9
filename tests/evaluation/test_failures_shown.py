"""Figures, tables and advice say what the lines of a run say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultragist_rag.evaluation.failures.advice import advice
from ultragist_rag.evaluation.failures.plots import failure_figures
from ultragist_rag.evaluation.failures.tables import failure_tables
from ultragist_rag.evaluation.tasks.failures import DIGITS, GROUPS


def made_up(kept: Sequence[float], *, numbers: float = 1.0, behind: float = 0.0) -> list[dict[str, Any]]:
    """Lines of a run in which full text is always right and gists at 2, 4, ... keep these shares."""
    rows: list[dict[str, Any]] = []

    def add(task: str, group: str, name: str, ratio: int | None, **scores: float) -> None:
        method = "full" if ratio is None else "gist"
        row = {"task": f"failures/{task}", "group": group, "id": name, "method": method, "ratio": ratio}
        rows.append({**row, "scores": scores})

    for ratio, share in ((None, 1.0), *((2 ** (place + 1), share) for place, share in enumerate(kept))):
        for sample in range(20):
            right = float(sample < round(share * 20))
            for group in GROUPS:
                value = right if "word" in group or ratio is None else float(sample < round(share * numbers * 20))
                add("surprise", group, f"{sample}-{group}", ratio, subem=value)
            add("along_the_way", "", str(sample), ratio, **{f"first_{n}": right for n in DIGITS})
            for k in (224, 256, 288):
                add("boundary_cut", f"{k:05}", f"{sample}-{k}", ratio, subem=right)
        for place in range(8):
            nll = 3.0 + (behind if ratio and place == 0 else 0.0)
            add("position", f"bin {place:02}", f"text 0 bin {place:02}", ratio, nll=nll, tokens=8.0)
        if ratio:
            add("probe", "weak", "weak text 0", ratio, accuracy=share / 2, other=0.1)
            add("probe", "strong", "strong text 0", ratio, accuracy=share, other=0.2)
    return rows


def test_advice_follows_from_the_numbers() -> None:
    ratio, window, verbatim = advice(made_up([1.0, 0.95, 0.5]))
    assert "at most 4 to 1" in ratio
    assert "at 8 to 1 it is 50%" in ratio
    assert "leave the window as it is" in window
    assert "not needed" in verbatim
    ratio, window, verbatim = advice(made_up([0.5, 0.4], numbers=0.2, behind=0.8))
    assert "no ratio measured keeps 90%" in ratio
    assert "+0.80 nats" in window
    assert "at least 12% of a window" in window
    assert "numbers keep 10% of full text's score, words 50%" in verbatim
    assert "verbatim='codes'" in verbatim


def test_nothing_is_advised_where_full_text_fails_or_lines_are_missing() -> None:
    rows = [{**row, "scores": dict.fromkeys(row["scores"], 0.0)} for row in made_up([1.0]) if "bin" not in row["group"]]
    assert advice(rows) == advice([]) == []
    skipped = [{**{k: v for k, v in row.items() if k != "scores"}, "skipped": "too long"} for row in made_up([1.0])]
    assert advice(skipped) == []


def test_figures_and_tables_say_what_the_lines_say() -> None:
    rows = made_up([1.0, 0.5], numbers=0.5)
    figures = failure_figures(rows, window=256)
    assert list(figures) == ["position", "boundary_cut", "surprise", "along_the_way", "probe"]
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_xlabel()
            assert axes.get_ylabel()
            assert axes.get_title()
        figure.canvas.draw()
    (legend,) = figures["along_the_way"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["full text", "gists, 2 to 1", "gists, 4 to 1"]
    (axes,) = figures["along_the_way"].axes
    drawn = [list(container.lines[0].get_ydata()) for container in axes.containers]
    assert drawn == [[1.0] * 6, [1.0] * 6, [0.5] * 6]
    tables = failure_tables(rows)
    assert tables["probe"][0] == ["decoder", "gists of", "2 to 1", "4 to 1"]
    assert ["strong", "its own", "100.0%", "50.0%"] in tables["probe"][1]
    assert ["word", "irrelevant", "100.0 (+0.0)", "100.0 (+0.0)", "50.0 (+0.0)"] in tables["surprise"][1]
    assert failure_figures([]) == failure_tables([]) == {}


def test_irrelevant_needles_are_held_against_relevant_ones() -> None:
    rows = [
        {**row, "scores": {"subem": 0.0}} if row["group"] == "irrelevant word" and row["ratio"] else row
        for row in made_up([1.0])
        if row["task"] == "failures/surprise"
    ]
    assert ["word", "irrelevant", "100.0 (+0.0)", "0.0 (-100.0)"] in failure_tables(rows)["surprise"][1]


def test_a_task_with_samples_left_out_is_held_against_the_same_samples() -> None:
    rows = made_up([1.0])
    kept = [row for row in rows if not (row["method"] == "gist" and row["id"].startswith("0"))]
    assert advice(kept)[0].startswith("Ratio: take at most 2 to 1, which keeps 100%")
