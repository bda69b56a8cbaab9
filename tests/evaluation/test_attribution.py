"""The area under the curve is the share of pairs in order; all ways score the same answers; the command writes rows."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from ultragist_rag import UltraGist
from ultragist_rag.cli import app
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import attribution
from ultragist_rag.evaluation.attribution import KINDS, attribution_table, measure_attribution
from ultragist_rag.evaluation.heldout import corpus_cases
from ultragist_rag.evaluation.metrics import Scores, bootstrap

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS, QUESTIONS = EXAMPLES / "corpus", EXAMPLES / "corpus_questions.jsonl"
BUNDLED = EXAMPLES.parent / "ultragist_rag/bundled/model.safetensors"


def test_the_gold_document_holds_the_answer_and_comes_at_every_place() -> None:
    cases = corpus_cases(CORPUS, QUESTIONS)
    titles = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    for case, entry in zip(cases, titles, strict=True):
        assert case.answers[0] in case.documents[case.gold]
        assert case.documents[case.gold].startswith(f"{entry['title']} - {entry['section']}")
    assert {case.gold for case in cases} == {0, 1, 2, 3}


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, (9, 4)).astype(np.float64)
    gold = np.eye(4)[rng.integers(0, 4, 9)]
    scores[2, 3] = scores[5, 0] = np.nan  # fewer documents
    known = ~np.isnan(scores)
    right, wrong = scores[known & (gold == 1)], scores[known & (gold == 0)]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(right, wrong)]
    given = attribution._area(scores, gold, draws=50)
    assert given is not None
    assert given[0] == pytest.approx(np.mean(pairs))

    def slow(scores: Scores, gold: Scores) -> float:
        known = ~np.isnan(scores)
        return float(roc_auc_score(gold[known], scores[known]))

    assert given == pytest.approx(bootstrap(slow, scores, gold, draws=50))


def test_scores_of_the_gold_document_alone_are_perfect_and_none_is_even() -> None:
    places = [0, 2, 1, 1]
    rows = [[float(place == gold) for place in range(3)] for gold in places]
    best = attribution._row("attention", (4,), rows, places, [True, False, True, False], 2.0)
    assert best.auc == best.auc_right == best.top1 == (1.0, 1.0, 1.0)
    assert (best.questions, best.right, best.seconds) == (4, 2, 0.5)
    flat = attribution._row("attention", (4,), [[0.5, 0.5]] * 4, [0, 1, 0, 1], [False] * 4, 0.0)
    assert flat.auc == (0.5, 0.5, 0.5)
    assert flat.auc_right is None
    assert attribution._row("attention", (4,), [[0.1]], [0], [True], 0.0).auc is None


def test_all_ways_score_the_answers_to_the_same_prompts(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [replace(case, documents=case.documents[:2], gold=0) for case in corpus_cases(CORPUS, QUESTIONS)[:3]]
    monkeypatch.setattr(attribution, "_DECODING", replace(attribution._DECODING, max_new_tokens=8))
    rows = measure_attribution(text_engine, cases, [8, 16])
    assert [row.kind for row in rows] == list(KINDS)
    assert {(row.ratios, row.questions, row.right) for row in rows} == {((8, 16), 3, 0)}
    assert attribution_table(rows).row_count == len(rows)
    monkeypatch.setattr(attribution, "_BATCH", 2)
    monkeypatch.setattr(text_engine, "source_bias", 1000.0)  # answers are decoded plainly all the same
    again = measure_attribution(text_engine, cases, [8, 16], KINDS[:1])
    assert [replace(row, seconds=0.0) for row in again] == [replace(row, seconds=0.0) for row in rows[:1]]


def test_what_cannot_be_measured_is_refused(text_engine: Any) -> None:
    with pytest.raises(InputError, match="gradients"):
        measure_attribution(text_engine, corpus_cases(CORPUS, QUESTIONS)[:1], [4], ["gradients"])
    with pytest.raises(InputError, match="0 questions"):
        measure_attribution(text_engine, [], [4])


@pytest.mark.skipif(not BUNDLED.is_file(), reason="the bundled model is not in this checkout")
def test_the_bundled_model_is_read_far_better_than_by_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "_DECODING", replace(attribution._DECODING, max_new_tokens=16))
    cases = corpus_cases(CORPUS, QUESTIONS)[::25]
    rows = measure_attribution(UltraGist.from_pretrained("bundled"), cases, [4], ["attention", "leave-one-out"])
    for row in rows:
        assert row.auc is not None
        assert row.auc[1] > 0.6
        assert row.top1[1] > 0.25


def test_the_command_writes_rows(model_folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    arguments = ["attribution", "--model", str(model_folders[0]), "--corpus", str(CORPUS)]
    arguments += ["--questions", str(QUESTIONS), "--limit", "1", "--ratio", "8", "--ratio", "8,16"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(out), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [(row["kind"], row["ratios"]) for row in rows] == [(kind, r) for r in ([8], [8, 16]) for kind in KINDS]
    assert json.loads(result.stdout) == rows


@pytest.mark.parametrize(("ratio", "says"), [("x", "'x'"), ("4,", "''"), ("0", "'0'")])
def test_a_wrong_ratio_is_refused_before_a_model_is_loaded(ratio: str, says: str) -> None:
    result = CliRunner().invoke(app, ["attribution", "--model", "no such model", "--ratio", ratio])
    assert result.exit_code == 2
    assert f"ratio {says}" in result.stderr
