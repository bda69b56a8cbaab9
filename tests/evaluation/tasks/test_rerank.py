"""Rankings are read as they are written, and documents have the grades that they should."""

from __future__ import annotations

import json
import lzma
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.rerank import TASKS, read_ranking

OWN, MSMARCO = TASKS


def words(text: str) -> int:
    return len(text.split())


def own(room: int = 2000, seed: int = 0, most: int = 10) -> list[Sample]:
    return list(islice(OWN.load(Source(task=OWN.name, room=room, count=words, seed=seed)), most))


def msmarco(place: Path, room: int = 2000, seed: int = 0) -> list[Sample]:
    return list(
        MSMARCO.load(
            Source(task=MSMARCO.name, files=MSMARCO.files, place=place, room=room, count=words, seed=seed),
        )
    )


def write(path: Path, *records: dict[str, Any]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "ranking"),
    [
        ("[2] > [1] > [4]", [1, 0, 3]),
        ("ID2 > ID1, 7 is less", [1, 0]),
        ("[4] then 1 and 2", [3]),
        ("[2] > [2] > [0] > [5] > [1]", [1, 0]),
        ("4.5 % of 3", []),
        ("the first one", []),
        ("", []),
    ],
)
def test_a_ranking_is_read_from_numbers_in_brackets_or_in_order(text: str, ranking: list[int]) -> None:
    assert read_ranking(text, 4) == ranking


@pytest.mark.parametrize("room", [2000, 100])
def test_own_documents_are_graded_by_place_and_answer(room: int) -> None:
    for one in own(room):
        (gold,) = one.gold
        grades = one.notes["grades"]
        titles = [text.split("] ", 1)[1].split("\n")[0].rpartition(" - ")[0] for text in one.documents]
        assert [text.split("]")[0] for text in one.documents] == [f"[{n + 1}" for n in range(len(one.documents))]
        expected = [2.0 if place == gold else float(title == titles[gold]) for place, title in enumerate(titles)]
        assert grades == expected
        assert titles[gold] in one.tail
        assert sum(map(words, one.documents)) <= room
    if room == 2000:
        assert all(sorted(one.notes["grades"]) == [0, 0, 0, 0, 0, 1, 1, 2] for one in own())


def test_equal_seeds_give_equal_samples() -> None:
    assert own() == own()
    assert not {one.documents for one in own()} & {one.documents for one in own(seed=1)}
    assert len({one.id for one in own()}) == 10


def test_perfect_rankings_score_one_and_the_worst_ones_less() -> None:
    for one in own():
        assert OWN.score(one, one.answers[0]) == {"ndcg": pytest.approx(1.0)}
        worst = " > ".join(reversed(one.answers[0].split(" > ")))
        assert 0 < OWN.score(one, worst)["ndcg"] < 0.6
        assert OWN.score(one, "I do not know")["ndcg"] == 0.0


def test_passages_with_labels_are_read_and_those_that_matter_stay(tmp_path: Path) -> None:
    ctxs = [{"id": str(n), "text": f"Passage number {n}.", "label": 0} for n in range(60)]
    ctxs[55] = {"id": "b", "title": "Best", "text": "This one.", "label": "3"}
    ctxs[57]["label"] = 1
    query = {"query": "Which one?", "ctxs": ctxs}
    useless = {"query": "None?", "ctxs": ctxs[:5]}
    write(tmp_path / "msmarco.jsonl.xz", query, query, useless)
    (one,) = msmarco(tmp_path)
    assert len(one.documents) == 50
    assert sorted(one.notes["grades"], reverse=True)[:3] == [3.0, 1.0, 0.0]
    (gold,) = one.gold
    assert one.documents[gold] == f"[{gold + 1}] Best\n\nThis one."
    assert one.tail.startswith("\n\nQuestion: Which one?\n")
    assert MSMARCO.score(one, one.answers[0])["ndcg"] == pytest.approx(1.0)
    assert msmarco(tmp_path) == [one] != msmarco(tmp_path, seed=1)
    (small,) = msmarco(tmp_path, room=13)
    assert sorted(small.notes["grades"]) == [0.0, 1.0, 3.0]
    assert msmarco(tmp_path, room=5) == []


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"ctxs": []}, "'query' is missing"),
        ({"query": "Q?", "ctxs": {}}, "'ctxs' is {}, but should be a list"),
        ({"query": "Q?", "ctxs": [{"text": "T."}]}, "'label' is missing, but should be a number"),
        ({"query": "Q?", "ctxs": [{"text": "T.", "label": "good"}]}, "'label' is 'good', but should be a number"),
    ],
)
def test_a_wrong_record_is_told_with_file_and_field(tmp_path: Path, record: dict[str, Any], match: str) -> None:
    with pytest.raises(MissingDataError, match=r"msmarco\.jsonl"):
        msmarco(tmp_path)
    path = write(tmp_path / "msmarco.jsonl", record)
    with pytest.raises(InputError, match=match) as caught:
        msmarco(tmp_path)
    assert f"record 1 of {path}" in str(caught.value)
