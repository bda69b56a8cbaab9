"""Values that are asked for stand once, in gold documents; samples fit, and are the same for equal seeds."""

from __future__ import annotations

import gzip
import json
import random
import re
import uuid
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks.haystack import Haystack, Needle
from ultragist_rag.evaluation.tasks.recall import ALIKE, TASKS, UNLIKE
from ultragist_rag.training.country_fields import SECTIONS

BY_NAME = {task.name: task for task in TASKS}
LITM = BY_NAME["recall/litm_kv"]
OWN = [task for task in TASKS if not task.files]
ROOM = 3000


def load(task: Task, most: int = 12, **settings: Any) -> list[Sample]:
    defaults = {"room": ROOM, "count": lambda text: len(text.encode()), "task": task.name, "files": task.files}
    return list(islice(task.load(Source(**{**defaults, **settings})), most))


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Sample]]:
    return {task.name: load(task) for task in OWN}


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_answers_stand_once_and_in_gold_documents(task: Task, drawn: dict[str, list[Sample]]) -> None:
    samples = drawn[task.name]
    assert len({sample.id for sample in samples}) == len(samples) == 12
    for sample in samples:
        assert all("\n\n".join(sample.documents).count(answer) == 1 for answer in sample.answers)
        assert {
            place
            for place, document in enumerate(sample.documents)
            if any(answer in document for answer in sample.answers)
        } == set(sample.gold)
        assert not any(answer in sample.tail for answer in sample.answers)
    assert len({place for sample in samples for place in sample.gold}) > 3  # they stand in many places


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_rooms_are_filled_and_kept(task: Task, drawn: dict[str, list[Sample]]) -> None:
    sizes = [len("\n\n".join(sample.documents).encode()) for sample in drawn[task.name]]
    longest = max(len(document.encode()) for sample in drawn[task.name] for document in sample.documents)
    assert ROOM - 2 * longest < min(sizes) <= max(sizes) <= ROOM
    small = load(task, most=6, room=700)
    assert all(len("\n\n".join(sample.documents).encode()) <= 700 for sample in small)
    assert all(answer in "".join(sample.documents) for sample in small for answer in sample.answers)


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_equal_seeds_give_equal_samples(task: Task, drawn: dict[str, list[Sample]]) -> None:
    assert load(task) == drawn[task.name]
    assert load(task, most=1, seed=1)[0].documents != drawn[task.name][0].documents


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_right_answers_score_one_and_wrong_ones_nothing(task: Task, drawn: dict[str, list[Sample]]) -> None:
    for sample in drawn[task.name][:10]:
        assert task.score(sample, " and ".join(sample.answers))["subem"] == 1.0
        assert task.score(sample, "I do not know")["subem"] == 0.0
        for other in sample.notes.get("others", ()):
            assert task.score(sample, other)["subem"] == 0.0


def test_tokens_that_joining_adds_are_counted() -> None:
    def count(text: str) -> int:
        return len(text.encode()) + 40 * text.count("\n\n", 0, len(text) - 2)

    for task in OWN:
        for sample in load(task, most=5, count=count):
            assert count("\n\n".join(sample.documents)) <= ROOM, task.name


def test_keys_are_alike_in_half_of_the_samples(drawn: dict[str, list[Sample]]) -> None:
    for sample in drawn["recall/mk_word"]:
        labels = []
        for value in (sample.answers[0], *sample.notes["others"]):
            (found,) = re.findall(rf"The (.+?) of .+ is {value}\.", "\n".join(sample.documents))
            labels.append(found)
        assert len(set(labels)) == {ALIKE: 1, UNLIKE: 4}[sample.group]
        assert f"What is the {labels[0]} of " in sample.tail
    assert sum(sample.group == ALIKE for sample in drawn["recall/mk_word"]) == 6


def test_all_values_of_one_place_are_asked_and_a_share_scores_as_such(drawn: dict[str, list[Sample]]) -> None:
    task = BY_NAME["recall/mv"]
    for sample in drawn["recall/mv"]:
        (name,) = re.findall(r"What are the 4 record numbers of (.+)\?", sample.tail)
        said = re.findall(rf"A record number of {name} is ([\d,]+)\.", "\n".join(sample.documents))
        assert sorted(said) == sorted(sample.answers)
        assert len(said) == 4 == len(sample.gold)
        assert len(re.findall("A record number of", "\n".join(sample.documents))) == 6
        assert task.score(sample, ", ".join(said[:3])) == {"subem": 0.75, "all": 0.0}
        assert task.score(sample, " and ".join(said)) == {"subem": 1.0, "all": 1.0}


def test_documents_of_pairs_are_json(drawn: dict[str, list[Sample]]) -> None:
    for sample in drawn["recall/json_kv"]:
        pairs = {key: value for document in sample.documents for key, value in json.loads(document).items()}
        (key,) = re.findall(r"the key (\S+)\?", sample.tail)
        assert pairs[key] == sample.answers[0]
        assert all(str(uuid.UUID(text)) == text for pair in pairs.items() for text in pair)


def test_needles_that_nobody_asks_for_make_room_first() -> None:
    places = Haystack(Source(task="a/b")).places(random.Random(0), 4)
    needles = [
        Needle(place, SECTIONS[at], f"The record number of {place.name} is {at}{at}{at}.", "record number", at == 2)
        for at, place in enumerate(places)
    ]
    for room in (60, 100, 150, 400):
        source = Source(task="a/b", room=room, count=lambda text: len(text.split()))
        documents, gold = Haystack(source).hide(random.Random(0), needles)
        assert [needles[2].sentence in documents[place] for place in gold] == [True]
        assert len("\n\n".join(documents).split()) <= room
        assert room < 100 or all(any(one.sentence in text.split("\n") for text in documents) for one in needles)
    documents, gold = Haystack(Source(task="a/b", room=1)).hide(random.Random(0), needles)
    assert (len(documents), gold) == (1, (0,))


def _pairs(count: int) -> list[list[str]]:
    rng = random.Random(count)
    return [[str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2)] for _ in range(count)]


@pytest.mark.parametrize("at", [0, 20, 37, 74])
def test_pairs_of_files_are_cut_around_the_one_that_is_asked(at: int, tmp_path: Path) -> None:
    pairs = _pairs(75)
    record = {"ordered_kv_records": pairs, "key": pairs[at][0], "value": pairs[at][1]}
    (tmp_path / "litm").mkdir()
    with gzip.open(tmp_path / "litm" / "kv-retrieval-75_keys.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    (cut,) = load(LITM, place=tmp_path)
    (whole,) = load(LITM, place=tmp_path, room=10_000)
    kept = [[key, value] for document in cut.documents for key, value in json.loads(document).items()]
    assert [[key, value] for document in whole.documents for key, value in json.loads(document).items()] == pairs
    assert 30 < len(kept) < 40
    place = kept.index(pairs[at])
    assert kept == pairs[at - place : at - place + len(kept)]
    assert place / (len(kept) - 1) == pytest.approx(at / 74, abs=0.5 / (len(kept) - 1) + 1e-9)
    assert len("\n\n".join(cut.documents)) <= ROOM
    assert cut.answers == (pairs[at][1],)
    assert pairs[at][1] in cut.documents[cut.gold[0]]


def test_a_record_without_the_pair_that_is_asked_is_refused(tmp_path: Path) -> None:
    record = {"ordered_kv_records": _pairs(3), "key": "none", "value": "of these"}
    (tmp_path / "kv-retrieval-75_keys.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    with pytest.raises(InputError, match=r"record 1 of .*'ordered_kv_records'"):
        load(LITM, place=tmp_path)
