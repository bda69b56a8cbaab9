"""Aggregates are those of a slow loop over the records, and damaged files are told by their line."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import TASKS, make_rows, make_run, write_rows

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import metrics
from ultragist_rag.evaluation.about import is_too_small
from ultragist_rag.evaluation.compare import comparison_lines, comparisons
from ultragist_rag.evaluation.intervals import interval, ratio, sums
from ultragist_rag.evaluation.records import RECORDS, RUN, Condition, Run
from ultragist_rag.evaluation.summary import Cell, cells, read_run, suite_cells

Row = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def rows(run: Run) -> list[Row]:
    return [json.loads(line) for line in (run.folder / RECORDS).read_text("utf-8").splitlines()]


def test_no_share_is_given_of_what_guessing_gets(tmp_path: Path) -> None:
    chance = {"icl/labels": {**TASKS["icl/labels"], "suite": "icl", "chance": 0.99}}
    run = read_run(make_run(tmp_path, only=("icl/labels",), tasks=chance))
    assert suite_cells(run) == ()
    full = next(cell for cell in cells(run) if cell.condition.method == "full")
    assert full.score[1] < 0.99
    assert is_too_small(full)


def _of(rows: list[Row], task: str, group: str, one: Condition) -> list[Row]:
    return [
        row
        for row in rows
        if (row["task"], row["method"], row["ratio"], row["budget"]) == (task, one.method, one.ratio, one.budget)
        and (not group or row["group"] == group)
    ]


def _score(cell: Cell, rows: list[Row]) -> float:
    if cell.task.lower_is_better:
        nats = sum(row["scores"]["nll"] * row["scores"]["n"] for row in rows)
        return math.exp(nats / sum(row["scores"]["n"] for row in rows))
    return sum(row["scores"][TASKS[cell.task.name]["metric"]] for row in rows) / len(rows)


def test_cells_equal_a_slow_loop(run: Run, rows: list[Row]) -> None:
    found = cells(run)
    assert {cell.task.name for cell in found} == set(TASKS)
    assert {cell.group for cell in found} == {"", "one hop", "several hops", "60", "64", "bin 00"}
    for cell in found:
        mine = _of(rows, cell.task.name, cell.group, cell.condition)
        scored = [row for row in mine if "skipped" not in row]
        assert (cell.n, cell.n_skipped) == (len(scored), len(mine) - len(scored))
        assert cell.score[0] == pytest.approx(_score(cell, scored))
        assert cell.slots == pytest.approx(statistics.mean(row["slots"] for row in scored))
        assert cell.n_bytes == pytest.approx(statistics.mean(row["bytes"] for row in scored))
        assert cell.n_tokens == pytest.approx(statistics.mean(row["tokens"] for row in scored))
        seconds = [row["seconds"] for row in scored]
        assert cell.compress_seconds == pytest.approx(statistics.mean(one["compress"] for one in seconds))
        assert cell.first_token_seconds == pytest.approx(statistics.median(one["first_token"] for one in seconds))
        assert cell.score[1] <= cell.score[0] <= cell.score[2]


def test_kept_is_against_the_full_text_on_the_same_samples(run: Run, rows: list[Row]) -> None:
    for cell in cells(run):
        full = {row["id"]: row for row in _of(rows, cell.task.name, cell.group, Condition(method="full"))}
        mine = [row for row in _of(rows, cell.task.name, cell.group, cell.condition) if "skipped" not in row]
        score, reference = _score(cell, mine), _score(cell, [full[row["id"]] for row in mine])
        if cell.task.lower_is_better:
            score, reference = reference, score
        assert cell.kept[0] == pytest.approx(score / reference if reference else math.nan, nan_ok=True)
        assert cell.n_kept == len(mine)


def test_full_text_keeps_all_of_itself(run: Run) -> None:
    full = [cell.kept for cell in cells(run) if cell.condition.method == "full" and cell.task.name != "recall/uuid"]
    full += [cell.kept for cell in suite_cells(run) if cell.condition.method == "full" and cell.suite != "recall"]
    assert full
    assert all(kept == pytest.approx((1, 1, 1)) for kept in full)
    (none,) = (cell for cell in suite_cells(run) if (cell.suite, cell.condition.method) == ("recall", "full"))
    assert math.isnan(none.kept[0])


def test_intervals_are_those_of_the_loop_over_resamples() -> None:
    rng = np.random.default_rng(3)
    scores, full = rng.random(23), rng.random(23)
    drawn = sums(scores, full)
    assert interval(drawn[0] / 23) == pytest.approx(metrics.bootstrap(metrics.mean, scores))
    assert interval(ratio(*drawn)) == pytest.approx(metrics.bootstrap(metrics.retention, scores, full))
    assert np.isnan(interval(ratio(*sums(scores, np.zeros(23))))).all()


def test_cells_are_plain_json(run: Run) -> None:
    for cell in cells(run):
        plain = json.loads(json.dumps(cell.to_dict(), allow_nan=False))
        assert (plain["task"], plain["method"], plain["ratio"]) == (cell.task.name, cell.method, cell.ratio)
        assert plain["n"] == cell.n
        assert plain["score"] == list(cell.score)
        assert (plain["kept"] is None) == math.isnan(cell.kept[0])


def test_suites_weigh_their_tasks_alike(run: Run) -> None:
    by_task = {(cell.task.name, cell.condition): cell for cell in cells(run) if not cell.group}
    for method, ratio_ in (("gist", 8), ("bm25", 32), ("closed", None)):
        condition = Condition(method=method, ratio=ratio_)
        (cell,) = (one for one in suite_cells(run) if (one.suite, one.condition) == ("rag", condition))
        scores, full = (
            [by_task[f"rag/{name}", one].score[0] for name in ("invented", "nq")]
            for one in (condition, Condition(method="full"))
        )
        assert cell.kept[0] == pytest.approx(sum(scores) / sum(full))
        assert (cell.n_tasks, cell.n, cell.full_score) == (2, 24, pytest.approx(sum(full) / 2))


def test_comparisons_are_paired_and_name_who_is_above(tmp_path: Path) -> None:
    rows = [row for row in make_rows(40, only=("rag/invented",)) if row["ratio"] in (None, 8) and "slots" in row]
    for row in rows:
        row["scores"] = {"subem": float(row["method"] in ("bm25", "full") or int(row["id"]) % 2)}
    write_rows(make_run(tmp_path), rows)
    found = {one.other.method: one for one in comparisons(read_run(tmp_path))}
    assert set(found) == {"bm25", "truncate", "kvpress:snapkv"}
    assert found["bm25"].gain[0] == pytest.approx(0.5)
    assert {name: one.verdict for name, one in found.items()} == {"bm25": 1, "truncate": 0, "kvpress:snapkv": 0}
    summary, line = comparison_lines(list(found.values()))
    assert "above in 1, below in 0" in summary
    assert "bm25 is above gist memories" in line
    assert "rag/invented by 0.500 (95 % 0." in line
    assert "not equal" not in line
    for row in rows:
        row["bytes"] *= 1 + (row["method"] == "bm25")
    write_rows(tmp_path, rows)
    assert "The bytes are not equal." in comparison_lines(comparisons(read_run(tmp_path)))[1]


def test_lower_perplexity_is_above(run: Run) -> None:
    (one,) = (
        one
        for one in comparisons(run)
        if (one.task.name, one.other) == ("perplexity/text", Condition(method="truncate", ratio=4))
    )
    assert one.gain[0] < 0
    assert one.verdict == -1


def test_budgets_are_compared_with_each_other(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, budget=4096))
    assert {one.ours for one in comparisons(run)} == {Condition(method="gist", budget=4096)}


def test_a_line_that_was_not_written_whole_is_left_out(tmp_path: Path) -> None:
    whole = read_run(make_run(tmp_path, n=2))
    text = (tmp_path / RECORDS).read_bytes()
    for end in (1, 2, 20):
        (tmp_path / RECORDS).write_bytes(text[:-end] if end > 1 else text + b'{"task": "caf\xc3')
        assert len(read_run(tmp_path).records) == len(whole.records) - (end > 1)
    (tmp_path / RECORDS).write_bytes(text.rstrip(b"\n"))
    assert read_run(tmp_path).records == whole.records


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"task": ', "Expecting value"),
        ("[]", "no JSON object"),
        ('{"task": "a/b", "id": "1", "method": "gist"}', "'scores' is missing"),
        ('{"task": "a/b", "id": "1", "method": "gist", "scores": {}}', "no score"),
        ('{"task": "a/b", "id": "1", "method": "gist", "scores": {"em": NaN}}', "nan is no finite number"),
        ('{"task": "a/b", "id": "1", "method": "gist", "ratio": "4", "scores": {"em": 1}}', "'4' is no whole number"),
        ("", "Expecting value"),
    ],
)
def test_another_damaged_line_is_an_error_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    make_run(tmp_path, n=2)
    lines = (tmp_path / RECORDS).read_text("utf-8").splitlines()
    lines[4] = line
    (tmp_path / RECORDS).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=rf"line 5 is damaged: .*{why}"):
        read_run(tmp_path)


def test_folders_that_hold_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run\.json"):
        read_run(tmp_path)
    (tmp_path / RUN).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        read_run(tmp_path)
    (tmp_path / RUN).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds no records\.jsonl"):
        read_run(tmp_path)


def test_of_two_equal_lines_the_later_counts_and_a_missing_metric_is_told(tmp_path: Path) -> None:
    make_run(tmp_path, n=2)
    row = next(make_rows(2))
    with (tmp_path / RECORDS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "scores": {"em": 1.0}}) + "\n")
    run = read_run(tmp_path)
    assert len(run.records) == len(list(make_rows(2)))
    with pytest.raises(InputError, match="has no 'subem', but em"):
        cells(run)


def test_facts_of_tasks_come_from_records_where_a_stopped_run_has_none(tmp_path: Path) -> None:
    make_run(tmp_path, n=2, tasks={})
    run = read_run(tmp_path)
    assert {name: one.suite for name, one in run.tasks.items()} == {name: name.partition("/")[0] for name in TASKS}
    assert run.tasks["rag/nq"].metric == "subem"
    assert run.tasks["perplexity/text"].lower_is_better
