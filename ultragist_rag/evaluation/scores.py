"""Scores of predictions: SQuAD's for short answers, and those of kept libraries for everything else.

Is        pure functions of strings; the libraries are imported when they are needed (extra `eval`).
Flow      metrics -> [scores] -> tasks.
Paper     arXiv 2412.17483, table 8; SQuAD, arXiv 1606.05250; ROUGE, Lin 2004.
Change    how a prediction is scored.
Holds     scores lie between 0 and 1, higher is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ultragist_rag.evaluation.metrics import exact_match, normalise

__all__ = ["accuracy", "edit_similarity", "ndcg", "qa_scores", "rouge"]


def qa_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Score a short answer: `subem` (an answer stands in it), `em` (it equals one), `f1` (words in common).

    Args:
        prediction: What was said.
        answers: What would be right.

    Returns:
        The best score over the answers, by name.

    Example:
        >>> qa_scores("It is the Rio Paraguay.", ["Rio Paraguay", "Paraguay"])["subem"]
        1.0
    """
    said = normalise(prediction)
    right = [normalise(answer) for answer in answers]
    return {
        "subem": float(any(f" {one} " in f" {said} " for one in right if one)),
        "em": exact_match(prediction, answers),
        "f1": max((_f1(said.split(), one.split()) for one in right), default=0.0),
    }


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else 0.0


def accuracy(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Score a label: 1.0 if it is one of the answers, case and marks aside."""
    return {"accuracy": exact_match(prediction, answers)}


def rouge(prediction: str, references: Sequence[str], measure: str = "fmeasure") -> dict[str, float]:
    """Score a longer text by ROUGE-1, ROUGE-2 and ROUGE-Lsum, the best over the references.

    Args:
        prediction: What was said.
        references: What would be right.
        measure: `fmeasure`, `recall` or `precision`.

    Returns:
        `rouge1`, `rouge2` and `rougeLsum`.
    """
    scorer = _rouge_scorer()
    rows = [scorer.score(reference, prediction) for reference in references]
    return {name: max(float(getattr(row[name], measure)) for row in rows) for name in ("rouge1", "rouge2", "rougeLsum")}


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def edit_similarity(prediction: str, reference: str) -> dict[str, float]:
    """Score code: 1 minus the Levenshtein distance over the longer length."""
    from rapidfuzz.distance import Levenshtein

    return {"edit": float(Levenshtein.normalized_similarity(prediction, reference))}


def ndcg(ranking: Sequence[int], grades: Sequence[float], at: int = 10) -> dict[str, float]:
    """Score a ranking.

    Args:
        ranking: Places of documents, best first; places left out come last.
        grades: Relevance of each document, by place.
        at: How many ranks count.

    Returns:
        `ndcg`, 1.0 for a perfect order; 0.0 if nothing is relevant, or nothing was ranked.
    """
    from sklearn.metrics import ndcg_score

    ranked = list(dict.fromkeys(place for place in ranking if 0 <= place < len(grades)))
    if not ranked or not any(grades):
        return {"ndcg": 0.0}
    if len(grades) == 1:  # a ranking of one is perfect, and more than the library takes
        return {"ndcg": 1.0}
    merits = [-float(len(grades))] * len(grades)
    for rank, place in enumerate(ranked):
        merits[place] = -float(rank)
    return {"ndcg": float(ndcg_score([list(grades)], [merits], k=at))}
