"""Exact values are asked for under equal budgets, and counted rightly."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ultragist_rag.cli import app
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import recall
from ultragist_rag.evaluation.recall import measure_recall, read_pool, recall_cases, recall_table

FACTS = Path(__file__).parents[2] / "examples" / "corpus_facts.json"
POOL = read_pool(FACTS)


@pytest.mark.parametrize("task", recall.BUDGETS)
def test_each_document_has_its_answer_once_and_equal_seeds_draw_equal_cases(task: str) -> None:
    cases = recall_cases(task, POOL, 30)
    assert cases == recall_cases(task, POOL, 30) != recall_cases(task, POOL, 30, seed=1)
    assert {case.document.count(case.answer) for case in cases} == {1}
    for case in cases:
        assert case.document.split(" - ")[0] in case.question
        digits = sum(c.isdigit() for c in case.document)
        assert digits == sum(c.isdigit() for c in case.answer)
        least = 12 if task == "long number" else 4
        assert str(uuid.UUID(case.answer)) == case.answer if task == "uuid" else digits >= least


def test_conditions_differ_in_what_is_kept_alone(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = recall_cases("number", POOL, 3)
    prompts: list[Any] = []

    def answer(_engine: Any, asked: list[Any]) -> list[str]:
        prompts.append(asked)
        kept = asked[0][0].n_verbatim if not isinstance(asked[0][0], str) else 0
        return [case.answer if kept and len(prompts) > 2 else case.answer[:2] for case in cases]

    monkeypatch.setattr(recall, "read", answer)
    text, raw, gists, mixed = measure_recall(text_engine, "number", cases, [400], ["regex"])
    assert [row.read_from for row in (text, raw, gists, mixed)] == ["text", "every token", "gists", "gists + regex"]
    for shown in prompts:
        assert [len(pieces) for pieces in shown] == [4, 4, 4]
        assert [pieces[3] for pieces in shown] == [f"\n\nQuestion: {case.question}\nAnswer:" for case in cases]
    assert prompts[0][0][:3] == [cases[1].document, "\n\n", cases[0].document]
    assert (mixed.exact_match[0], gists.exact_match[0], mixed.difference) == (1.0, 0.0, (1.0, 1.0, 1.0))
    assert 0 < gists.characters[0] < 1 == mixed.characters[0]
    assert (text.slots, raw.budget, gists.n_verbatim) == (0.0, None, 0.0)
    assert raw.n_verbatim == sum(len(case.document.encode()) for case in cases) / len(cases)
    assert max(gists.slots, mixed.slots) <= 400 < raw.slots - 3  # a token of the tests is a byte
    assert recall_table([text, raw, gists, mixed]).row_count == 4


def test_the_command_writes_rows(
    model_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "read", lambda _engine, prompts: ["1,234"] * len(prompts))
    out = tmp_path / "rows.json"
    arguments = ["recall", "--model", model_folders[0], "--facts", FACTS, "--questions", 1, "--slots", "700"]
    arguments += ["--verbatim", "codes"]
    result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--output", out, "--json")])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [(row["task"], row["budget"]) for row in rows] == [
        (task, budget) for task in recall.BUDGETS for budget in (None, None, 700, 700)
    ]
    assert json.loads(result.stdout) == rows


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--slots", "8,x"], "slots 'x'"), (["--verbatim", "all"], "'all'"), (["--facts", "none.json"], "none.json")],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(more: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["recall", "--model", "no such model", *more])
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_missing_file_of_facts_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.json is missing"):
        read_pool(Path("nowhere.json"))


def test_a_budget_that_is_too_small_is_left_out_and_said(
    text_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cases = recall_cases("uuid", POOL, 2)
    monkeypatch.setattr(recall, "read", lambda _engine, prompts: [""] * len(prompts))
    rows = measure_recall(text_engine, "uuid", cases, [30], ["codes"])
    assert [row.read_from for row in rows] == ["text", "every token", "gists"]
    assert "gists + codes at 30 slots is left out" in caplog.text
