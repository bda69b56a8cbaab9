"""Tables show every cell once, say what they cannot, and stand beside what is published."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from pathlib import Path

import pytest
from rich.console import Console
from run_records import make_rows, make_run, write_rows

from ultragist_rag.evaluation.about import facts, limits
from ultragist_rag.evaluation.published import published
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.results_page import results_markdown, write_results
from ultragist_rag.evaluation.summary import cells, read_run, suite_cells
from ultragist_rag.evaluation.tables import (
    cells_grid,
    is_failure,
    markdown,
    published_grid,
    run_markdown,
    run_table,
)
from ultragist_rag.evaluation.wording import interval_text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("run") / "first"))


def test_every_cell_has_its_row(run: Run) -> None:
    found = [cell for cell in cells(run) if cell.group != "bin 00"]  # the only one of its task
    grid = cells_grid(cells(run))
    assert len(grid.rows) == len(found) < len(cells(run))
    assert grid.head[:5] == ["task", "group", "method", "ratio", "n"]
    for cell, row in zip(found, grid.rows, strict=True):
        shown = dict(zip(grid.head, row, strict=True))
        assert (shown["task"], shown["method"], shown["n"]) == (cell.task.name, cell.condition.method, str(cell.n))
        assert shown["score (95 %)"].removesuffix(" ppl") == interval_text(cell.score)
        assert shown["KiB"] == f"{cell.n_bytes / 1024:.1f}"
        assert shown["kept of full (95 %)"] == ("-" if cell.task.lm_needed else interval_text(cell.kept))


def test_tables_for_the_terminal_and_in_markdown_hold_the_same(run: Run) -> None:
    found = [cell for cell in cells(run) if not is_failure(cell)]
    grid = cells_grid(found)
    out = io.StringIO()
    Console(file=out, width=200).print(run_table(run))
    printed, text = out.getvalue(), markdown(grid)
    place = grid.head.index("group")
    for row in grid.rows:
        shown = any(all(cell in line for cell in row) for line in printed.splitlines())
        assert shown == (not row[place])  # groups are left to the file
        assert f"| {' | '.join(row)} |" in text
    assert "failures/" not in printed


def test_tasks_beyond_the_model_are_told_in_words(run: Run) -> None:
    text = run_markdown(run)
    assert "recall/uuid: no share can be given (models of this size cannot do it): full text gives 0.00." in text
    assert "rag/nq: too small" not in text
    assert "4 of rag/invented" in text
    assert "code/repo is left out: no file was found." in text


def test_texts_of_a_run_are_no_markup(tmp_path: Path) -> None:
    rows = [{**row, "task": "rag/[red]<b>|x", "method": f"{row['method']}"} for row in make_rows(3)][:8]
    write_rows(make_run(tmp_path, tasks={}), rows)
    run, out = read_run(tmp_path), io.StringIO()
    Console(file=out, width=200).print(run_table(run))
    assert "rag/[red]<b>|x" in out.getvalue()
    assert "<b>" not in run_markdown(run).replace(r"\<b\>", "")
    assert r"rag/\[red\]\<b\>\|x" in run_markdown(run)


def test_published_shares_are_those_of_the_published_scores() -> None:
    record = json.loads(files("ultragist_rag.evaluation").joinpath("published.json").read_text("utf-8"))
    averages = {"8B": 55.6, "Qwen2-7B": 51.4}  # as printed beside the scores
    for base, scores in record["full"].items():
        assert sum(scores) / len(scores) == pytest.approx(averages[base], abs=0.06)
    best = published()[0]
    assert best.ratios == [4, 8, 16, 32]
    assert {suite: round(row[4], 2) for suite, row in best.kept.items()} == {
        "rag": 0.99,
        "rerank": 0.69,
        "longqa": 0.97,
        "icl": 1.20,
        "recall": 0.66,
        "summary": 0.93,
        "code": 0.95,
    }
    assert all(set(one.kept) == set(best.kept) for one in published())
    assert all("2412.17483" in one.source for one in published())


def test_ours_stand_beside_the_published(run: Run) -> None:
    found = suite_cells(run)
    grid = published_grid(found)
    rows = {(row[0], row[1]): dict(zip(grid.head, row, strict=True)) for row in grid.rows}
    assert len(rows) == len(grid.rows)
    for cell in found:
        if cell.condition.method == "gist" and cell.suite in ("rag", "icl"):
            row = rows[cell.suite, str(cell.condition.ratio)]
            assert row["gist (95 %)"] == interval_text(cell.kept)
            assert row["published, best (8B)"] == f"{published()[0].kept[cell.suite][cell.condition.ratio or 0]:.2f}"
    assert ("code", "4") not in rows
    assert rows["recall", "4"]["gist (95 %)"] == "-"
    assert rows["chat", "4"]["published, best (8B)"] == ""


def test_limits_follow_from_the_run(run: Run, tmp_path: Path) -> None:
    small = "\n".join(limits(run, cells(run)))
    assert "A base of 4.2 M parameters is not an 8B base" in small
    assert "rag/invented" in small
    assert "rag/nq" not in small
    large = read_run(make_run(tmp_path, n=2, n_parameters=8_000_000_000))
    assert "is not an 8B base" not in "\n".join(limits(large, cells(large)))
    assert dict(facts(large))["parameters"] == "8.0 B"


def test_results_page_holds_the_numbers_of_its_runs(tmp_path: Path) -> None:
    run, second = (
        read_run(make_run(tmp_path / name, n=4, only=only))
        for name, only in (("first", ("perplexity/text",)), ("second", ("rag/invented",)))
    )
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    write_results([run, second], page)
    text = page.read_text("utf-8")
    assert text.index("## first") < text.index("## second")
    for one in (run, second):
        assert markdown(published_grid(suite_cells(one))) in text
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(links) == 5  # two overviews, one figure of perplexity, two of tasks
    assert all((page.parent / link).is_file() for link in links)
    assert text.count("ultragist-rag eval --suite all") == 2
    assert "](results" not in results_markdown([run, second], {})
