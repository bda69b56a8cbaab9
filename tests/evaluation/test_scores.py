"""Scores agree with slow formulas and with examples worked out by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from ultragist_rag.evaluation.scores import accuracy, edit_similarity, ndcg, qa_scores, rouge


def _slow_ndcg(ranking: Sequence[int], grades: Sequence[float], at: int) -> float:
    """The formula: gain over the logarithm of the rank, against that of the best order."""
    gains = [grades[place] for place in ranking][:at]
    best = sorted(grades, reverse=True)[:at]
    got, most = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(row)) for row in (gains, best))
    return got / most


@pytest.mark.parametrize("seed", range(20))
def test_ndcg_equals_its_formula(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randrange(2, 15)
    grades = [float(rng.choice((0, 0, 1, 2, 3))) for _ in range(count - 1)] + [1.0]
    ranking = rng.sample(range(count), count)
    at = rng.choice((1, 3, 10))
    assert ndcg(ranking, grades, at)["ndcg"] == pytest.approx(_slow_ndcg(ranking, grades, at))


def test_ndcg_knows_what_is_best_what_is_nothing_and_what_is_left_out() -> None:
    grades = [0.0, 2.0, 0.0, 1.0]
    assert ndcg([1, 3, 0, 2], grades) == {"ndcg": pytest.approx(1.0)}
    assert ndcg([1, 3], grades) == {"ndcg": pytest.approx(1.0)}
    assert ndcg([3, 1], grades)["ndcg"] == pytest.approx(_slow_ndcg([3, 1, 0, 2], grades, 10))
    assert ndcg([3, 1], grades)["ndcg"] < 1
    assert ndcg([1, 1, 99, -1, 3], grades) == {"ndcg": pytest.approx(1.0)}  # named twice, or no documents at all
    assert ndcg([], grades) == ndcg([0, 1], [0.0, 0.0]) == {"ndcg": 0.0}


def _slow_distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, start=1):
        above, row = row, [number]
        for place, right in enumerate(other):
            row.append(min(above[place + 1] + 1, row[place] + 1, above[place] + (letter != right)))
    return row[-1]


@pytest.mark.parametrize("seed", range(20))
def test_edit_similarity_equals_a_slow_levenshtein_distance(seed: int) -> None:
    rng = random.Random(seed)
    one, other = ("".join(rng.choices("ab(c) =", k=rng.randrange(1, 25))) for _ in range(2))
    slow = 1 - _slow_distance(one, other) / max(len(one), len(other))
    assert edit_similarity(one, other)["edit"] == pytest.approx(slow)


def test_edit_similarity_is_one_for_equal_lines_and_zero_for_nothing() -> None:
    assert edit_similarity("return x", "return x") == {"edit": 1.0}
    assert edit_similarity("", "return x") == edit_similarity("aaa", "bbb") == {"edit": 0.0}


@pytest.mark.parametrize(
    ("prediction", "answers", "subem", "em", "f1"),
    [
        ("Rio Paraguay", ["Rio Paraguay"], 1, 1, 1),
        ("It is the Rio Paraguay.", ["Rio Paraguay", "Parana"], 1, 0, 2 * 2 / (4 + 2)),  # "the" does not count
        ("the river Parana", ["Rio Parana"], 0, 0, 2 * 1 / (2 + 2)),
        ("Paraguayan", ["Paraguay"], 0, 0, 0),  # part of a word is no answer
        ("12,345 km", ["12345 km."], 1, 1, 1),
        ("no no", ["no"], 1, 0, 2 * 1 / (2 + 1)),  # a word counts as often as both have it
        ("", ["Rio"], 0, 0, 0),
        ("anything", ["the"], 0, 0, 0),  # nothing is left of the answer
        ("anything", [], 0, 0, 0),
    ],
)
def test_short_answers_are_scored_as_by_hand(
    prediction: str, answers: list[str], subem: float, em: float, f1: float
) -> None:
    assert qa_scores(prediction, answers) == {"subem": subem, "em": em, "f1": pytest.approx(f1)}


def test_a_label_is_right_whatever_its_case_and_marks() -> None:
    assert accuracy(" Book a room.", ["book a room"]) == accuracy("DESC:manner", ["desc:manner"]) == {"accuracy": 1.0}
    assert accuracy("book a room now", ["book a room"]) == {"accuracy": 0.0}


def _overlap(said: str, right: str) -> tuple[float, float]:
    """Precision and recall of words, for texts in which none is there twice."""
    one, other = set(said.split()), set(right.split())
    return len(one & other) / len(one), len(one & other) / len(other)


def test_rouge_of_single_words_is_their_overlap() -> None:
    said, right = "red cat sat down", "old cat sat"
    precision, recall = _overlap(said, right)
    assert rouge(said, [right], "precision")["rouge1"] == pytest.approx(precision)
    assert rouge(said, [right], "recall")["rouge1"] == pytest.approx(recall)
    assert rouge(said, [right])["rouge1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert rouge(said, [right], "recall")["rouge2"] == pytest.approx(1 / 2)  # "cat sat" of "old cat", "cat sat"


def test_rouge_lies_between_nothing_and_all_and_takes_the_best_reference() -> None:
    text = "The ferry was late.\nThe passengers sat on their bags."
    names = ("rouge1", "rouge2", "rougeLsum")
    assert rouge(text, [text]) == dict.fromkeys(names, pytest.approx(1.0))
    assert rouge("Nothing like it", [text]) == rouge("", [text]) == dict.fromkeys(names, 0.0)
    part = rouge("The ferry was late.", [text])
    assert all(0 < part[name] < 1 for name in names)
    assert rouge("The ferry was late.", ["Nothing like it", text]) == part
    mixed = rouge("Bags their on sat passengers the.\nLate was ferry the.", [text])  # the words, but not their order
    assert mixed["rouge1"] == pytest.approx(1.0)
    assert mixed["rougeLsum"] < 1
