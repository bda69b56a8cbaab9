"""Demonstrations are balanced, fit, and hold every label that can be right; files are read in all their formats."""

from __future__ import annotations

import csv
import json
import lzma
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks.icl import TASKS
from ultragist_rag.evaluation.tasks.shipped import shipped

BY_NAME = {task.name: task for task in TASKS}
OWN = BY_NAME["icl/own"]


def source(task: Task, **settings: Any) -> Source:
    words = {"room": 400, "count": lambda text: len(text.split()), "task": task.name, "files": task.files}
    return Source(**{**words, **settings})


def load(task: Task, **settings: Any) -> list[Sample]:
    return list(task.load(source(task, **settings)))


def demonstrations(sample: Sample) -> list[tuple[str, str]]:
    parts = [part for document in sample.documents for part in document.split("\n\n")]
    return [(text, label) for text, _, label in (part.partition("\nlabel: ") for part in parts)]


def test_own_texts_are_all_different_and_their_labels_have_as_many() -> None:
    by_label = shipped("intents.yaml")
    texts = [text for texts in by_label.values() for text in texts]
    assert len(texts) == len(set(texts)) == 12 * len(by_label)


@pytest.mark.parametrize("room", [60, 150, 400, 2000])
def test_demonstrations_are_balanced_and_fit(room: int) -> None:
    samples = load(OWN, room=room)
    shown = demonstrations(samples[0])
    assert {sample.documents for sample in samples} == {samples[0].documents}
    assert len("\n\n".join(samples[0].documents).split()) <= room
    counts = Counter(label for _, label in shown)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {sample.answers[0] for sample in samples} == set(counts)
    asked = {sample.tail.removeprefix("\n\n").removesuffix("\nlabel:") for sample in samples}
    assert not asked & {text for text, _ in shown}
    if room == 2000:
        assert len(shown) == 64
        assert len(samples) == 32
    else:
        longest = max(len(text.split()) + 4 for texts in shipped("intents.yaml").values() for text in texts)
        assert len("\n\n".join(samples[0].documents).split()) > room - longest  # as many as there is room for


def test_documents_hold_many_demonstrations_each() -> None:
    first = load(OWN, room=2000)[0]
    sizes = [len(document.split()) for document in first.documents]
    assert len(sizes) > 1
    assert max(sizes) <= 256


def test_tokens_that_joining_adds_are_counted() -> None:
    samples = load(OWN, room=300, count=lambda text: len(text.split()) + 2 * text.count("\n\n", 0, len(text) - 2))
    joined = "\n\n".join(samples[0].documents)
    assert 250 < len(joined.split()) + 2 * joined.count("\n\n") <= 300


def test_equal_seeds_give_equal_samples() -> None:
    assert load(OWN) == load(OWN)
    assert load(OWN)[0].documents != load(OWN, seed=1)[0].documents
    assert len({sample.id for sample in load(OWN)}) == len(load(OWN))


def test_the_right_label_scores_one_and_another_nothing() -> None:
    for sample in load(OWN):
        assert OWN.score(sample, f" {sample.answers[0]}") == {"accuracy": 1.0}
        assert OWN.score(sample, "some other label") == {"accuracy": 0.0}


def test_a_room_too_small_for_one_text_is_said() -> None:
    with pytest.raises(MissingDataError, match="5 tokens hold no text"):
        load(OWN, room=5)


def check(samples: Sequence[Sample], labels: Sequence[str]) -> None:
    """Two texts of each of two labels are shown, one of each is asked."""
    assert [sample.answers[0] for sample in samples] == list(labels)
    shown = Counter(demonstrations(samples[0]))
    assert Counter(label for _, label in shown.elements()) == dict.fromkeys(labels, 2)
    assert not {sample.tail for sample in samples} & {f"\n\n{text}\nlabel:" for text, _ in shown}


def test_trec_is_read_in_its_own_encoding(tmp_path: Path) -> None:
    train = "NUM:count How many ?\nDESC:def What is a na\xefve fool ?\nNUM:date What year ?\nDESC:manner How do I ?\n"
    (tmp_path / "train_5500.label").write_bytes(train.encode("latin-1"))
    (tmp_path / "TREC_10.label.xz").write_bytes(lzma.compress(b"DESC:def What is light ?\nNUM:date When ?\n\n"))
    coarse = load(BY_NAME["icl/trec_coarse"], place=tmp_path)
    check(coarse, ["DESC", "NUM"])
    assert "na\xefve" in "".join(coarse[0].documents)
    fine = load(BY_NAME["icl/trec_fine"], place=tmp_path)
    assert [sample.answers for sample in fine] == [("DESC:def",), ("NUM:date",)]
    assert Counter(label for _, label in demonstrations(fine[0])) == Counter(
        ("NUM:count", "DESC:def", "NUM:date", "DESC:manner")
    )
    (tmp_path / "train_5500.label").write_bytes(b"NUM:count How many ?\nWhat is this\n")
    with pytest.raises(InputError, match=r"record 2 of .*train_5500\.label: 'line' is 'What is this'"):
        load(BY_NAME["icl/trec_fine"], place=tmp_path)


BANKING = {
    "train": [("a b", "card_arrival"), ("c d", "fee"), ("e f", "fee"), ("g h", "card_arrival")],
    "test": [("i j", "card_arrival"), ("k l", "fee")],
}


@pytest.mark.parametrize("kind", ["jsonl", "xz", "csv"])
def test_banking77_is_read_from_json_lines_and_from_csv(kind: str, tmp_path: Path) -> None:
    for role, pairs in BANKING.items():
        lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
        if kind == "csv":
            with (tmp_path / f"{role}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "category"), *pairs])
        elif kind == "xz":
            (tmp_path / f"banking77_{role}.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
        else:
            (tmp_path / f"banking77_{role}.jsonl").write_text(lines, encoding="utf-8")
    check(load(BY_NAME["icl/banking77"], place=tmp_path), ["card arrival", "fee"])


def test_one_file_is_not_read_as_demonstrations_and_questions(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a b", "label": "fee"}\n', encoding="utf-8")
    for name in ("icl/banking77", "icl/trec_fine"):
        with pytest.raises(MissingDataError, match="needs two files"):
            load(BY_NAME[name], place=tmp_path / "one.jsonl")


@pytest.mark.parametrize("public", [False, True])
def test_clinc150_is_read_from_records_and_from_the_public_file(public: bool, tmp_path: Path) -> None:
    both = {**BANKING, "val": [("y z", "fee")], "oos_test": [("m n", "oos")]}
    both["test"] = [*both["test"], ("o p", "oos")]
    if public:
        (tmp_path / "data_full.json").write_text(json.dumps(both), encoding="utf-8")
    else:
        rows = [{"split": split, "text": text, "label": label} for split in both for text, label in both[split]]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / "clinc150_full.jsonl.xz").write_bytes(lzma.compress(lines))
    check(load(BY_NAME["icl/clinc150"], place=tmp_path), ["card arrival", "fee"])


def test_nlu_labels_are_scenario_and_intent(tmp_path: Path) -> None:
    rows = [
        {"split": split, "text": text, "scenario": "alarm", "intent": "set" if label == "fee" else "query_all"}
        for split, pairs in BANKING.items()
        for text, label in pairs
    ]
    task = BY_NAME["icl/nlu"]
    path = tmp_path / "nlu_home_kfold1.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    check(load(task, place=tmp_path), ["alarm query all", "alarm set"])
    path.write_text(json.dumps({**rows[0], "split": "dev"}), encoding="utf-8")
    with pytest.raises(InputError, match="'split' is 'dev'"):
        load(task, place=tmp_path)


def test_labels_without_a_demonstration_are_not_asked(tmp_path: Path) -> None:
    for role, pairs in {"train": BANKING["train"], "test": [*BANKING["test"], ("q r", "unheard_of")]}.items():
        lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs)
        (tmp_path / f"banking77_{role}.jsonl").write_text(lines, encoding="utf-8")
    task = BY_NAME["icl/banking77"]
    assert [sample.answers[0] for sample in load(task, place=tmp_path)] == ["card arrival", "fee"]
    (one,) = load(task, place=tmp_path, room=6)
    assert one.answers[0] == demonstrations(one)[0][1]


def test_missing_files_are_one_clear_line(tmp_path: Path) -> None:
    for task in TASKS[1:]:
        with pytest.raises(MissingDataError, match=f"{task.name} is left out: .* holds no"):
            load(task, place=tmp_path)
