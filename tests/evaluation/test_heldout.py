"""Cases hold their answer and three other chunks; scores and intervals are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ultragist_rag.chunking import split_document
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.answering import predict
from ultragist_rag.evaluation.heldout import corpus_cases
from ultragist_rag.evaluation.metrics import bootstrap, exact_match, mean, normalise, retention, spread
from ultragist_rag.evaluation.report import measure

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS, QUESTIONS = EXAMPLES / "corpus", EXAMPLES / "corpus_questions.jsonl"


def test_every_case_holds_its_answer_among_four_chunks_of_three_countries() -> None:
    cases = corpus_cases(CORPUS, QUESTIONS)
    assert len(cases) >= 200
    assert sum(case.heldout for case in cases) * 3 == len(cases)
    for case in cases:
        titles = [document.split(" - ")[0] for document in case.documents]
        assert len(case.documents) == 4
        assert len(set(titles)) == 3
        assert any(case.answers[0] in document for document in case.documents)
        assert max(map(len, case.documents)) <= 1000
    assert corpus_cases(CORPUS, QUESTIONS) == cases


def test_profiles_are_of_the_promised_length() -> None:
    words = [len(path.read_text(encoding="utf-8").split()) for path in CORPUS.glob("*.md")]
    assert len(words) == 25
    assert min(words) >= 300
    assert max(words) <= 1500


def test_a_missing_corpus_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make_corpus"):
        corpus_cases(tmp_path / "none", QUESTIONS)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [("The Rio Paraguay.", "Rio Paraguay", 1.0), ("1,098,581 sq km", "1,098,581 sq km", 1.0), ("0", "10", 0.0)],
)
def test_exact_match_ignores_case_articles_and_marks(prediction: str, answer: str, score: float) -> None:
    assert exact_match(prediction, [answer]) == score
    assert normalise(normalise(prediction)) == normalise(prediction)


def test_bootstrap_intervals_cover_the_value_and_shrink() -> None:
    rng = np.random.default_rng(1)
    small, large = (rng.integers(0, 2, count).astype(np.float64) for count in (40, 4000))
    value, low, high = bootstrap(mean, small)
    assert low < value < high
    assert value == small.mean()
    _, low_large, high_large = bootstrap(mean, large)
    assert high_large - low_large < (high - low) / 3
    assert bootstrap(retention, small, small) == (1.0, 1.0, 1.0)


def test_all_methods_run_and_batches_answer_as_single_cases(text_engine: object) -> None:
    cases = corpus_cases(CORPUS, QUESTIONS)[:2]
    rows = measure("corpus", cases[:1], text_engine, ratios=(4,))  # type: ignore[arg-type]
    assert [row.method for row in rows] == ["full", "composed", "joint", "closed"]
    together = predict(text_engine, cases, "composed", 4)  # type: ignore[arg-type]
    alone = [predict(text_engine, [case], "composed", 4)[0] for case in cases]  # type: ignore[arg-type]
    assert together == alone


@pytest.mark.parametrize("limit", [None, 1, 7, 100, 1000])
def test_a_limit_takes_cases_from_everywhere(limit: int | None) -> None:
    cases = corpus_cases(CORPUS, QUESTIONS)
    some = spread(cases, limit)
    assert len(some) == min(limit or len(cases), len(cases))
    places = [cases.index(case) for case in some]
    assert places == sorted(set(places))
    assert len(cases) - places[-1] <= -(-len(cases) // len(some))


def test_chunks_keep_every_line_once_in_order() -> None:
    text = "# Title\n\nfirst line\n\n## Part\n\n" + "\n".join(f"line {i} " + "x" * (i % 70) for i in range(90))
    chunks = split_document(text, max_chars=300)
    lines = [line for chunk in chunks for line in chunk.text.split("\n\n", 1)[1].splitlines()]
    assert lines == [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert all(len(chunk.text) <= 300 for chunk in chunks)
    assert [word for chunk in split_document("word " * 400, "t", 200) for word in chunk.text.split()[1:]] == [
        "word"
    ] * 400
