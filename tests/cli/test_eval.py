"""`ultragist-rag eval` and `results`: what they write and print, and how they end on wrong input."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ultragist_rag.cli import app
from ultragist_rag.evaluation.records import read_run
from ultragist_rag.evaluation.task import registered_tasks


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_run_becomes_a_table_a_report_and_a_page_of_results(model_folders: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    common = ["eval", "--model", model_folders[0], "--suite", "chat/own,failures/surprise", "--output", run]
    common += ["--ratios", "4", "--methods", "gist,truncate", "--limit", 1, "--context", 600]
    result = invoke(*common)
    assert result.exit_code == 0, result.output
    assert "chat/own" in result.stdout
    assert {path.name for path in run.iterdir()} == {"run.json", "records.jsonl", "table.md", "plots", "report.html"}
    assert "Failure patterns" in (run / "report.html").read_text("utf-8")
    again = invoke(*common, "--json")  # measures nothing anew
    cells = json.loads(again.stdout)
    assert {(cell["method"], cell["ratio"]) for cell in cells} == {("full", None), ("gist", 4), ("truncate", 4)}
    assert len(read_run(run).records) == 6
    page = tmp_path / "docs" / "results.md"
    mine = page.parent / "results" / "plots" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"")
    made = invoke("results", run, "--output", page)
    assert made.exit_code == 0, made.output
    assert "## run" in page.read_text("utf-8")
    pictures = {path.name for path in mine.parent.iterdir()} - {mine.name}
    assert mine.is_file()  # of another page, or one's own
    assert all(f"results/plots/{name}" in page.read_text("utf-8") for name in pictures)
    other = tmp_path / "other" / "results.md"
    other.parent.mkdir()
    packed = page.parent / "results" / "runs" / "run"
    assert b"prediction" not in lzma.decompress((packed / "records.jsonl.xz").read_bytes())
    assert invoke("results", packed, "--output", other).exit_code == 0
    assert other.read_text("utf-8") == page.read_text("utf-8")


def test_tasks_are_listed_without_a_model() -> None:
    result = invoke("eval", "--list", "--model", "no such model")
    assert result.exit_code == 0
    assert [name for name in registered_tasks() if name not in result.stdout] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "raag"], "suite 'raag' is unknown"),
        (["--ratios", "4,x"], "ratio 'x' is no number"),
        (["--methods", "magic"], "method 'magic' is unknown"),
        (["--data", "nowhere"], "data 'nowhere' do not exist"),
        (["--data", "rag/nq=nowhere"], "data 'nowhere' do not exist"),
        (["--data", ".", "--data", ".."], "given twice"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = invoke("eval", "--model", "no such model", "--output", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "run").exists()


def test_results_of_a_folder_that_is_no_run_are_refused(tmp_path: Path) -> None:
    result = invoke("results", tmp_path, "--output", tmp_path / "results.md")
    assert result.exit_code == 2
    assert "no folder of a run" in result.stderr
    assert not (tmp_path / "results.md").exists()


@pytest.mark.slow
def test_quick_measures_every_suite_on_the_bundled_model(tmp_path: Path) -> None:
    result = invoke("eval", "--quick", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    run = read_run(tmp_path)
    suites = {task.suite for task in registered_tasks().values()} | {"weak"}
    assert {task.suite for task in run.tasks.values()} == suites
    assert {one.condition.method for one in run.records} == {"full", "gist", "truncate"}
    answered = [one for one in run.records if one.task == "rag/invented" and one.condition.method == "full"]
    assert sum(one.scores["subem"] for one in answered) >= len(answered) / 2
