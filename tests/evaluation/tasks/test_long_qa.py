"""Long documents fit their room and keep what is asked for; their formats are read."""

from __future__ import annotations

import json
import lzma
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.long_qa import TASKS

BY_NAME = {task.name.partition("/")[2]: task for task in TASKS}
OWN = ("own", "choice_own")


def words(text: str) -> int:
    return len(text.split())


def load(name: str, place: Path | None = None, room: int = 400, seed: int = 0, most: int | None = 8) -> list[Sample]:
    task = BY_NAME[name]
    source = Source(task=task.name, files=task.files, place=place, room=room, count=words, seed=seed)
    return list(islice(task.load(source), most))


def write(path: Path, *records: dict[str, Any]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.mark.parametrize("room", [150, 400, 1200])
@pytest.mark.parametrize("name", OWN)
def test_a_report_fills_its_room_and_holds_the_answer_once_in_the_third_it_says(name: str, room: int) -> None:
    for one in load(name, room=room, most=6):
        (document,), (answer,) = one.documents, one.answers
        assert (0.5 if room == 150 else 0.75) * room <= words(document) <= room
        assert document.count(answer) == 1
        passages = document.split("\n\nDay ")[1:]
        (place,) = (number for number, passage in enumerate(passages) if answer in passage)
        names = [re.match(r"\d+: (.*) - ", passage)[1] for passage in passages]
        assert len(set(names)) == len(names) > 1
        assert names[place] in one.tail
        if len(passages) > 2:
            assert (
                one.group
                == ("beginning", "middle", "end")[next(k for k in range(3) if place < len(names) * (k + 1) // 3)]
            )


@pytest.mark.parametrize("name", OWN)
def test_equal_seeds_give_equal_samples(name: str) -> None:
    samples = load(name)
    assert samples == load(name)
    assert not {one.documents for one in samples} & {one.documents for one in load(name, seed=1)}
    assert len({one.id for one in samples}) == len(samples)
    assert len({one.group for one in samples}) > 1


def test_choices_are_four_of_which_one_is_right() -> None:
    samples = load("choice_own")
    task = BY_NAME["choice_own"]
    for one in samples:
        assert len(set(one.choices)) == 4
        scores = [task.score(one, choice)["accuracy"] for choice in one.choices]
        assert sorted(scores) == [0.0, 0.0, 0.0, 1.0]
        assert one.choices[scores.index(1.0)] == f" {one.answers[0]}"
    assert len({one.choices.index(f" {one.answers[0]}") for one in samples}) > 1


def test_wrong_choices_are_of_the_same_report_where_it_has_them() -> None:
    (one,) = load("choice_own", room=6000, most=1)
    wrong = [choice.strip() for choice in one.choices if choice.strip() != one.answers[0]]
    assert all(choice in one.documents[0] for choice in wrong)


def test_right_answers_score_one_and_wrong_ones_nothing() -> None:
    for one in load("own"):
        assert BY_NAME["own"].score(one, f" It is {one.answers[0]}.")["rougeLsum"] == 1.0
        assert BY_NAME["own"].score(one, "xyzzy")["rougeLsum"] == 0.0


def test_novels_keep_beginning_and_end(tmp_path: Path) -> None:
    book = "First words. " + "Then it went on. " * 500 + "Last words."
    records = [{"context": book, "input": f"Question {n}?", "answer": ["Yes, it is", "Yes"]} for n in range(2)]
    write(tmp_path / "longbook_qa_eng.jsonl.xz", *records)
    first, second = load("infbench_qa", tmp_path)
    assert first.documents == second.documents
    assert first.documents[0].startswith("First words.")
    assert first.documents[0].endswith("Last words.")
    assert 200 < words(first.documents[0]) <= 400
    assert (second.tail, second.answers) == ("\n\nQuestion: Question 1?\nAnswer:", ("Yes, it is", "Yes"))
    assert BY_NAME["infbench_qa"].score(first, "Yes it is so")["rougeLsum"] == 1.0


@pytest.mark.parametrize("answer", [["an owl"], "an owl", "B"])
def test_options_are_choices_and_letters_stand_for_them(tmp_path: Path, answer: Any) -> None:
    record = {"context": "An owl.", "input": "What is it?", "options": ["a newt", "an owl", "hay"], "answer": answer}
    write(tmp_path / "longbook_choice_eng.jsonl", record)
    (one,) = load("infbench_choice", tmp_path)
    assert (one.documents, one.choices) == (("An owl.",), (" a newt", " an owl", " hay"))
    assert [BY_NAME["infbench_choice"].score(one, choice)["accuracy"] for choice in one.choices] == [0.0, 1.0, 0.0]


def test_meetings_are_cut_around_the_turns_that_are_asked_for(tmp_path: Path) -> None:
    turns = [{"speaker": "Ada" if n % 2 else "Ben", "content": f"Turn number {n} ." if n else ""} for n in range(300)]
    spans = [["199", "201"], ["204", "205"]]
    record = {
        "meeting_transcripts": turns,
        "general_query_list": [{"query": "What was it about?", "answer": "Numbers."}],
        "specific_query_list": [{"query": "Which turns?", "answer": "Some.", "relevant_text_span": spans}],
    }
    write(tmp_path / "qmsum_val.jsonl.xz", record)
    whole, part = load("qmsum", tmp_path)
    assert (whole.group, part.group) == ("general", "specific")
    assert whole.documents[0].startswith("Ben: \nAda: Turn number 1 .")
    assert whole.documents[0].endswith("Turn number 299 .")
    assert all(f"Turn number {n} ." in part.documents[0] for n in range(195, 210))
    assert "Turn number 1 ." not in part.documents[0]
    assert max(words(one.documents[0]) for one in (whole, part)) <= 400
    assert len({whole.id, part.id}) == 2
    assert BY_NAME["qmsum"].score(part, "Some.")["rougeLsum"] == 1.0
    everything = load("qmsum", tmp_path, room=5000)
    assert everything[0].documents == everything[1].documents


@pytest.mark.parametrize("form", ["rows", "published", "hub"])
def test_verdicts_on_abstracts_are_read_in_three_forms(tmp_path: Path, form: str) -> None:
    text = ["Owls were watched.", "They slept."]
    if form == "published":
        one = {"QUESTION": "Do owls sleep?", "CONTEXTS": text, "final_decision": "yes"}
        (tmp_path / "ori_pqal.json").write_text(json.dumps({"123": one}))
    else:
        context = {"contexts": text} if form == "hub" else "\n".join(text)
        record = {"question": "Do owls sleep?", "context": context, "answer": "yes"}
        write(tmp_path / "pubmedqa_labeled.jsonl", {**record, "split": "test"}, {**record, "split": "train"})
    (sample,) = load("pubmedqa", tmp_path)
    assert sample.documents == ("Owls were watched.\nThey slept.",)
    assert (sample.choices, sample.answers) == ((" yes", " no", " maybe"), ("yes",))
    assert sample.tail == "\n\nQuestion: Do owls sleep?\nAnswer:"
    assert [BY_NAME["pubmedqa"].score(sample, one)["accuracy"] for one in sample.choices] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "file", "record", "match"),
    [
        ("infbench_qa", "longbook_qa_eng.jsonl", {"context": "T.", "input": "Q?", "answer": []}, r"'answer' is \[\]"),
        (
            "infbench_choice",
            "longbook_choice_eng.jsonl",
            {"context": "T.", "input": "Q?", "options": ["a", "b"], "answer": ["D"]},
            "one of the options",
        ),
        ("qmsum", "qmsum_val.jsonl", {"meeting_transcripts": [{"speaker": "Ada"}]}, "'content' is missing"),
        (
            "qmsum",
            "qmsum_val.jsonl",
            {
                "meeting_transcripts": [{"speaker": "Ada", "content": "Hm."}],
                "general_query_list": [],
                "specific_query_list": [{"query": "Q?", "answer": "A.", "relevant_text_span": [["a"]]}],
            },
            "pairs of turns",
        ),
        ("pubmedqa", "pubmedqa_labeled.jsonl", {"question": "Q?", "answer": "perhaps"}, "yes, no or maybe"),
        ("pubmedqa", "pubmedqa_labeled.jsonl", {"question": "Q?", "answer": "yes", "context": 1}, "a list of texts"),
    ],
)
def test_a_wrong_record_is_told_with_file_and_field(
    tmp_path: Path, name: str, file: str, record: dict[str, Any], match: str
) -> None:
    with pytest.raises(MissingDataError, match=re.escape(file)):
        load(name, tmp_path)
    path = write(tmp_path / file, record)
    with pytest.raises(InputError, match=match) as caught:
        load(name, tmp_path)
    assert str(path) in str(caught.value)
