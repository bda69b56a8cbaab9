"""Samples of the suite `rag` hold their answers where they say, and come from every format."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks import fitting, places, rag_own
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.rag import TASKS
from ultragist_rag.training.country_fields import FIELDS, SECTIONS

BY_NAME = {task.name: task for task in TASKS}
EXAMPLES = Path(__file__).parents[3] / "examples"
FOREST = {
    "question": "Who lives in the hollow oak?",
    "context": "An owl lives in the hollow oak.",
    "answers": ["An owl"],
}
POND = {"question": "What swims in the pond?", "context": "Two newts swim in the pond.", "answers": ["Two newts"]}
BARN = {"question": "What is in the barn?", "context": "There is hay in the barn.", "answers": ["hay"]}


def words(text: str) -> int:
    return len(text.split())


def load(
    task: Task, place: Path | None = None, room: int = 2000, seed: int = 0, most: int | None = None
) -> list[Sample]:
    source = Source(task=task.name, files=task.files, place=place, room=room, count=words, seed=seed)
    return list(islice(task.load(source), most))


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


@pytest.mark.parametrize("new", [False, True])
def test_an_invented_answer_stands_in_the_gold_document_and_in_no_other(new: bool) -> None:
    samples = [one for one in load(BY_NAME["rag/invented"], most=30) if (one.group == "new wording") == new]
    assert len(samples) >= 4
    for one in samples:
        (answer,), (gold,) = one.answers, one.gold
        assert [text.count(answer) for text in one.documents] == [int(place == gold) for place in range(4)]
        title, _, section = one.documents[gold].split("\n")[0].rpartition(" - ")
        assert title in one.tail
        assert section in SECTIONS
        assert sum(text.startswith(f"{title} - ") for text in one.documents) == 2
        asked = one.tail.removeprefix("\n\nQuestion: ").removesuffix("\nAnswer:")
        wordings = {
            w.replace("{c}", title) for f in FIELDS for w in (f.heldout_wordings() if new else f.train_wordings())
        }
        assert asked in wordings


def test_another_place_has_a_page_of_the_same_section_in_some_samples() -> None:
    alike = []
    for one in load(BY_NAME["rag/invented"], most=30):
        sections = [text.split("\n")[0].rpartition(" - ")[2] for text in one.documents]
        alike.append(sections.count(sections[one.gold[0]]))
    assert set(alike) == {1, 2}


def test_equal_seeds_give_equal_samples_and_places_of_gold_vary() -> None:
    task = BY_NAME["rag/invented"]
    samples = load(task, most=20)
    assert samples == load(task, most=20)
    assert not {one.documents for one in samples} & {one.documents for one in load(task, seed=1, most=20)}
    assert len({one.id for one in samples}) == len(samples)
    assert rag_own._COUNT >= 200
    assert {one.gold for one in samples} == {(0,), (1,), (2,), (3,)}


@pytest.mark.parametrize("room", [30, 80, 150])
def test_a_small_room_takes_lines_first_and_never_the_answer(room: int) -> None:
    for one in load(BY_NAME["rag/invented"], room=room, most=10):
        assert sum(map(words, one.documents)) <= room
        assert [text.count(one.answers[0]) for text in one.documents] == [
            int(place in one.gold) for place in range(len(one.documents))
        ]
        assert len(one.documents) == 4 or room == 30


def test_a_place_says_the_same_each_time_and_has_values_for_every_field() -> None:
    place = places.draw_place(random.Random(0))
    assert place.sections == place.sections
    assert place.lines == [line for section in SECTIONS for line in place.section(section)]
    assert all(place.name in line.text and line.value in line.text for line in place.lines)
    values = [values for section in SECTIONS for values in places._values(section).values() if values]
    assert len(values) == len(FIELDS)
    assert all(len(set(of_field)) == len(of_field) >= 4 for of_field in values)


@pytest.mark.parametrize("task", [one for one in TASKS if not one.files], ids=lambda task: task.name)
def test_right_answers_score_one_and_wrong_ones_nothing(task: Task) -> None:
    for one in load(task, most=5):
        assert task.score(one, f" It is {one.answers[0]}.")[task.metric] == 1.0
        assert task.score(one, "nothing of the kind")[task.metric] == 0.0


def test_the_example_corpus_is_read_and_the_gold_document_is_of_the_place_asked_for() -> None:
    shuffled = load(BY_NAME["rag/corpus"], EXAMPLES)
    assert len({one.group for one in shuffled[::3]}) == 2
    samples = sorted(shuffled, key=lambda one: one.id)
    lines = (EXAMPLES / "corpus_questions.jsonl").read_text("utf-8").splitlines()
    assert len(samples) == len(lines)
    for one, line in zip(samples, lines, strict=True):
        entry = json.loads(line)
        assert one.documents[one.gold[0]].startswith(f"{entry['title']} - {entry['section']}\n")
        assert entry["answer"] in one.documents[one.gold[0]]
        assert one.group == ("new wording" if entry["heldout"] else "trained wording")
    small = load(BY_NAME["rag/corpus"], EXAMPLES, room=200)
    assert max(sum(map(words, one.documents)) for one in small) <= 200
    assert {one.id: one.answers for one in small}.items() <= {one.id: one.answers for one in samples}.items()


def test_questions_without_their_corpus_are_missing_data(tmp_path: Path) -> None:
    write(tmp_path / "corpus_questions.jsonl", [{}])
    with pytest.raises(MissingDataError, match="corpus is missing"):
        load(BY_NAME["rag/corpus"], tmp_path)


def test_factbook_sections_of_held_out_countries_are_asked(tmp_path: Path) -> None:
    names = [f"Land {letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHI"]
    sections = [
        {
            "title": name,
            "section": "Government",
            "context": f"{name} - Government\n\nCapital\nname: Town {name[-1]}",
            "qas": [{"question": f"What is the capital of {name}?", "answers": [f"Town {name[-1]}"]}],
        }
        for name in names
    ]
    for folder in ("train", "qa_train"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "train" / "factbook.jsonl.xz", [{"title": name} for name in names])
    with pytest.raises(MissingDataError, match="factbook_template_qa"):
        load(BY_NAME["rag/factbook"], tmp_path)
    write(tmp_path / "qa_train" / "factbook_template_qa.jsonl.xz", sections)
    samples = sorted(load(BY_NAME["rag/factbook"], tmp_path), key=lambda one: one.id)
    assert [one.documents[one.gold[0]][:6] for one in samples] == sorted(
        (sorted(names)[place] for place in (7, 17, 27)), key=names.index
    )


@pytest.mark.parametrize("name", ["policyqa_test.jsonl", "policyqa_test.jsonl.xz"])
def test_passages_stand_among_others_that_do_not_hold_the_answer(tmp_path: Path, name: str) -> None:
    other = {**BARN, "title": "Farm", "question": "Where is the hay?", "context": "The hay of two newts is above."}
    write(tmp_path / name, [{**FOREST, "title": "Wood"}, {**POND, "title": "Farm"}, {**BARN, "title": "Farm"}, other])
    task = BY_NAME["rag/policyqa"]
    forest, pond, barn, hay = load(task, tmp_path)
    assert forest.documents[forest.gold[0]] == "Wood\n\nAn owl lives in the hollow oak."
    assert (forest.tail, forest.answers) == ("\n\nQuestion: Who lives in the hollow oak?\nAnswer:", ("An owl",))
    assert len(forest.documents) == 4
    assert sorted(pond.documents) == sorted(set(forest.documents) - set(hay.documents[hay.gold[0] :][:1]))
    assert len(barn.documents) == len(hay.documents) == 3
    assert load(task, tmp_path, room=9) == [
        replace(one, documents=(one.documents[one.gold[0]],), gold=(0,)) for one in (forest, pond, barn, hay)
    ]
    assert load(task, tmp_path, room=3) == []


def test_the_published_form_of_squad_is_flattened_and_hub_answers_are_read(tmp_path: Path) -> None:
    asked = {"question": FOREST["question"], "answers": [{"text": "An owl", "answer_start": 0}]}
    nested = {"data": [{"title": "Wood_land", "paragraphs": [{"context": FOREST["context"], "qas": [asked]}]}]}
    (tmp_path / "xquad.en.json").write_text(json.dumps(nested))
    (published,) = load(BY_NAME["rag/xquad"], tmp_path)
    write(tmp_path / "xquad_en.jsonl", [{**FOREST, "title": "Wood land", "answers": {"text": ["An owl"]}}])
    assert [published] == load(BY_NAME["rag/xquad"], tmp_path)


def test_sentences_that_answer_are_read_in_both_forms(tmp_path: Path) -> None:
    head = {"section": "Life", "question": "What do owls eat?"}
    ours = {**head, "title": "Owl", "context": "Owls fly. They eat mice.", "answer_sentences": ["They eat mice."]}
    theirs = {**head, "article": "Owl", "candidates": ["Owls fly.", "They eat mice."], "answers": [1]}
    write(tmp_path / "selqa_test.jsonl.xz", [ours])
    task = BY_NAME["rag/selqa"]
    samples = load(task, tmp_path)
    assert samples[0].documents == ("Owl - Life\n\nOwls fly. They eat mice.",)
    assert task.score(samples[0], "They eat mice.")[task.metric] == 1.0
    (tmp_path / "selqa_test.jsonl.xz").unlink()
    (tmp_path / "selqa-ass-test.json").write_text(json.dumps([theirs]))
    assert load(task, tmp_path) == samples


def test_reports_become_lines_of_cells_and_paragraphs(tmp_path: Path) -> None:
    questions = [
        {"question": "How many hens?", "answer": 12, "answer_type": "arithmetic"},
        {"question": "Which birds?", "answer": ["hens", "geese"], "answer_type": "multi-span"},
    ]
    record = {
        "table": {"table": [["", "2019"], ["hens", " 7 "], ["geese", "2"]]},
        "paragraphs": [{"text": "Counted in  spring."}],
        "questions": questions,
    }
    write(tmp_path / "tatqa_dev.jsonl", [record])
    hens, birds = load(BY_NAME["rag/tatqa"], tmp_path)
    assert hens.documents == (" | 2019\nhens | 7\ngeese | 2\n\nCounted in  spring.",)
    assert (hens.answers, hens.group, birds.answers, birds.group) == (
        ("12",),
        "arithmetic",
        ("hens, geese",),
        "multi-span",
    )


def test_tables_are_read_from_csv_with_quotes_and_line_breaks(tmp_path: Path) -> None:
    table = '"Name","Made\nin"\n"The \\"Lark\\"","1901"\n'
    qas = [{"question": "Which are there?", "answers": ["Lark", "1901"]}]
    write(tmp_path / "wikitablequestions_test.jsonl", [{"title": "Boats", "csv": table, "qas": qas}])
    (one,) = load(BY_NAME["rag/tables"], tmp_path)
    assert one.documents == ('Boats\n\nName | Made in\nThe "Lark" | 1901',)
    assert one.answers == ("Lark, 1901",)


def test_retrieved_passages_that_answer_are_found_in_three_ways(tmp_path: Path) -> None:
    passages = [{"title": f"Page {n}", "text": f"Page {n} is about moss number {n}."} for n in range(30)]
    right = {"title": "Owls", "text": "The owl is an old bird."}
    asked = {"question": "What is the owl?", "answers": ["old bird"]}
    records = [
        {**asked, "ctxs": [*passages, right]},
        {**asked, "ctxs": passages},
        {
            "question": "Named?",
            "answer": "moss",
            "ctxs": [{**passages[0], "isgold": False}, {**passages[1], "isgold": True}],
        },
        {"question": "Given?", "answers": "moss", "ctxs": passages[:2], "positive_ctxs": [passages[5]]},
        {"question": "Failed?", "answers": ["newt"], "ctxs": passages[:2]},
    ]
    write(tmp_path / "nq.jsonl", records)
    found, named, given, failed = load(BY_NAME["rag/nq"], tmp_path)
    assert [found.documents[place] for place in found.gold] == ["Owls\n\nThe owl is an old bird."]
    assert len(found.documents) == 20
    assert [named.documents[place][:6] for place in named.gold] == ["Page 1"]
    assert [given.documents[place][:6] for place in given.gold] == ["Page 5"]
    assert len(given.documents) == 3
    assert (failed.gold, len(failed.documents)) == ((), 2)
    assert load(BY_NAME["rag/nq"], tmp_path, seed=1)[0].documents != found.documents


def test_paragraphs_with_supporting_facts_are_read(tmp_path: Path) -> None:
    record = {
        "question": "Who feeds the owl?",
        "answer": "Mo",
        "context": [["Owl", ["The owl is in the barn.", " It sleeps."]], ["Mo", ["Mo feeds it."]], ["Hen", ["A hen."]]],
        "supporting_facts": [["Owl", 0], ["Mo", 0]],
    }
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps([record]))
    (one,) = load(BY_NAME["rag/hotpotqa"], tmp_path)
    assert {one.documents[place] for place in one.gold} == {
        "Owl\n\nThe owl is in the barn. It sleeps.",
        "Mo\n\nMo feeds it.",
    }
    assert len(one.documents) == 3


@pytest.mark.parametrize(
    ("task", "file", "record", "match"),
    [
        ("rag/xquad", "xquad_en.jsonl", {"question": "Q?", "context": "Text."}, "record 1 of .*'answers' is missing"),
        ("rag/xquad", "xquad_en.jsonl", {"question": "Q?", "context": "Text.", "answers": []}, r"'answers' is \[\]"),
        ("rag/xquad", "xquad_en.jsonl", {"question": "Q?", "context": "T.", "answers": [True]}, "a list of texts"),
        ("rag/policyqa", "policyqa_test.jsonl", {**FOREST, "context": 7}, "'context' is 7, but should be a text"),
        ("rag/selqa", "selqa_test.jsonl", {"candidates": ["A."], "answers": [3]}, "places in candidates"),
        ("rag/tatqa", "tatqa_dev.jsonl", {"table": {"table": ["cell"]}}, "a list of lists of cells"),
        ("rag/tatqa", "tatqa_dev.jsonl", {"table": [["cell"]]}, "'table' is .* but should be an object"),
        ("rag/tables", "wikitablequestions_test.jsonl", {"csv": "a,b", "qas": "none"}, "'qas' is 'none'"),
        ("rag/popqa", "popqa.jsonl", {"question": "Q?", "answers": ["a"], "ctxs": ["text"]}, "a list of objects"),
        ("rag/nq", "nq.jsonl", {"question": "Q?", "answers": ["a"], "ctxs": [{"title": "T"}]}, "'text' is missing"),
        (
            "rag/hotpotqa",
            "hotpotqa.jsonl",
            {"question": "Q?", "answer": "a", "context": ["x"], "supporting_facts": []},
            "pairs of title and sentences",
        ),
    ],
)
def test_a_wrong_record_is_told_with_file_and_field(
    tmp_path: Path, task: str, file: str, record: dict[str, Any], match: str
) -> None:
    path = write(tmp_path / file, [record])
    with pytest.raises(InputError, match=match) as caught:
        load(BY_NAME[task], tmp_path)
    assert str(path) in str(caught.value)


def test_a_record_that_is_no_object_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"triviaqa\.jsonl"):
        load(BY_NAME["rag/triviaqa"], tmp_path)
    (tmp_path / "triviaqa.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"record 1 of .* is \[1\], but should be an object"):
        load(BY_NAME["rag/triviaqa"], tmp_path)


def test_a_line_separator_within_a_text_ends_no_record(tmp_path: Path) -> None:
    text = json.dumps({**FOREST, "context": "An owl\u2028lives here."}, ensure_ascii=False)
    (tmp_path / "xquad_en.jsonl").write_text(text + "\r\n", encoding="utf-8", newline="")
    (one,) = load(BY_NAME["rag/xquad"], tmp_path)
    assert one.documents == ("An owl\u2028lives here.",)


@pytest.mark.parametrize("room", [5, 40, 300])
@pytest.mark.parametrize("place", [None, 0, 500, 995])
def test_a_long_text_is_cut_to_the_room_around_its_evidence_or_to_its_ends(room: int, place: int | None) -> None:
    text = " ".join(f"w{number:04d}" for number in range(1000))
    evidence = None if place is None else (place * 6, place * 6 + 11)
    cut = Room(Source(task="t", room=room, count=words)).cut(text, evidence)
    assert 0.5 * room < words(cut) <= room
    assert text[:5] in cut or place not in (None, 0)
    if evidence is None:
        assert (cut[:5], cut[-5:], fitting._GAP in cut) == ("w0000", "w0999", True)
    else:
        assert text[slice(*evidence)] in cut
        assert cut in text


def test_evidence_that_is_too_long_keeps_its_beginning_and_short_texts_stay() -> None:
    room = Room(Source(task="t", room=10, count=words))
    text = " ".join(f"w{number:04d}" for number in range(100))
    assert room.cut(text, (60, 500)).startswith("w0010 w0011")
    assert room.cut("a b c", (0, 1)) == "a b c"
