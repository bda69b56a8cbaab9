"""Every kind of sample draws what it says; rows keep heads and exact values where they stand."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.batches import HEADS, RowMaker
from ultragist_rag.training.passages import LONGEST, READERS
from ultragist_rag.training.samples import EXACT, KINDS, MEETINGS, Recipe, Sample, SampleSource, read_records

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
VALUES = {
    "needles": re.compile(r"[^\W\d_]+( [^\W\d_]+)*|\d{3,8}|\d{1,3}(,\d{3})+"),
    "keys": re.compile(r"[^\W\d_]+( [^\W\d_]+)*|\d{3,8}|\d{1,3}(,\d{3})+"),
    "codes": re.compile(rf"{UUID.pattern}|\d{{3}}(,\d{{3}}){{3}}"),
    "key-codes": UUID,
}


@pytest.fixture(scope="module")
def source(country_data: Path) -> SampleSource:
    return SampleSource(country_data, ("wikipedia-00", MEETINGS), tuple(READERS))


def draw(source: SampleSource, kind: str, count: int = 60, *, real_words: bool = False) -> list[Sample]:
    rng = random.Random(kind)
    recipe = Recipe({kind: 1.0}, (1, 4), (3, 8), 8, 300, real_words)
    return [source.draw(recipe, rng) for _ in range(count)]


def holders(sample: Sample, answer: str) -> list[str]:
    return [text for text in sample.documents if re.search(rf"(?<![\w,-]){re.escape(answer)}(?![\w-])", text)]


@pytest.mark.parametrize("real_words", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_from_its_seed_without_held_out_names(
    source: SampleSource, kind: str, real_words: bool
) -> None:
    samples = draw(source, kind, real_words=real_words)
    assert samples == draw(source, kind, real_words=real_words)
    assert len(set(samples)) > 5
    if kind not in {"labels", "profile", "factbook", "quotes"}:  # whose lines may tell nothing that can be asked
        assert all(bool(sample.pairs) == (kind != "text") for sample in samples)
    assert any(sample.pairs for sample in samples) == (kind != "text")
    assert all(sample.exact == (kind in EXACT) for sample in samples)
    assert not any("Hesta" in text for sample in samples for text in (*sample.documents, *map(str, sample.pairs)))
    assert all(any(answer in text for text in sample.documents) for sample in samples for _, answer in sample.pairs)


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_is_asked_for_is_of_its_kind_and_stands_in_one_document(source: SampleSource, kind: str) -> None:
    for sample in draw(source, kind):
        for _, answer in sample.pairs:
            assert VALUES[kind].fullmatch(answer)
            if len(answer) > 5:
                assert len(holders(sample, answer)) == 1


def test_a_quotation_follows_its_words(source: SampleSource) -> None:
    pairs = [(sample, *pair) for sample in draw(source, "quotes") for pair in sample.pairs]
    assert len(pairs) > 50
    for sample, question, answer in pairs:
        cue = question[question.index('"') + 1 : question.rindex('"')]
        follows = re.compile(rf"{re.escape(cue)}\s+{re.escape(answer)}")
        assert sum(len(follows.findall(text)) for text in sample.documents) == 1


@pytest.mark.parametrize("kind", ["needles", "codes"])
def test_a_needle_stands_in_the_page_of_the_place_that_is_asked_about(source: SampleSource, kind: str) -> None:
    for sample in draw(source, kind):
        assert len(sample.pairs) == min(len(sample.documents), 8)
        for question, answer in sample.pairs:
            pages = [text for text in sample.documents if re.search(rf"\b{text.split(' - ')[0]}\b", question)]
            assert any(answer in text for text in pages)


@pytest.mark.parametrize("kind", ["keys", "key-codes"])
def test_a_question_for_a_key_has_the_value_of_this_key(source: SampleSource, kind: str) -> None:
    for sample in draw(source, kind):
        entries = [entry for text in sample.documents for entry in json.loads(text).items()]
        for question, answer in sample.pairs:
            assert answer in [value for key, value in entries if key in question]


@pytest.mark.parametrize("name", READERS)
def test_passages_hold_their_answers_and_no_held_out_country(
    source: SampleSource, country_data: Path, name: str
) -> None:
    everything = list(READERS[name](read_records(country_data / "qa_train" / f"{name}.jsonl.xz")))
    kept = source.passages[name]
    assert kept
    assert kept == [p for p in everything if "Hestaland" not in p.text and p.pairs[0][0] != "What is it?"]
    for passage in everything:
        assert len(passage.text) <= LONGEST
        assert passage.pairs
        assert all(answer in passage.text for _, answer in passage.pairs)


def test_passages_are_made_by_the_layout_of_their_file(source: SampleSource) -> None:
    passages = source.passages
    assert next(pair for p in passages["qamr_wiki"] for pair in p.pairs) == ("Who built gate 0?", "old masons")
    assert len(passages["qamr_wiki"]) < 12  # several sentences each
    assert [p.pairs for p in passages["policyqa_dev"]] == [(("How long?", "a week"),)]
    assert [p.pairs for p in passages["selqa_dev"]] == [(("Who came?", "Old masons came."),)]
    [paper] = passages["covidqa_200423"]
    assert paper.text.count("A long paper.") > 10
    [table] = passages["wikitablequestions_train"]
    assert table.text.startswith("Heights\nname: Ada; height: 12\nname: Bob; height: 34\n")
    assert table.pairs == (("How high is Bob?", "34"),)  # the row of the other lies beyond the room
    meeting = "Ann: let us begin\nBen: yes\nQuestion: Summarize\nAnswer: They began.\nQuestion: Who agreed"
    assert any(text.startswith(meeting) for text in source.texts)


def test_unknown_questions_are_refused(country_data: Path) -> None:
    with pytest.raises(TrainingError, match="'trivia' are unknown: known are qamr_wiki"):
        SampleSource(country_data, questions=("trivia",))


@pytest.mark.parametrize("kind", sorted(EXACT))
def test_exact_places_of_a_row_cover_the_value(source: SampleSource, text_engine: Any, kind: str) -> None:
    maker = RowMaker(text_engine.tokenizer, text_engine.tokenizer.eos_token)
    for sample in draw(source, kind, 10):
        row = maker.row(sample, random.Random(0))
        kept = [
            text_engine.tokenizer.decode([ids[place] for place in places])
            for ids, places in zip(row.documents, row.exact, strict=True)
        ]
        assert all(any(answer in text for text in kept) for _, answer in sample.pairs)
        assert all(len(places) < len(ids) for ids, places in zip(row.documents, row.exact, strict=True))
    assert not maker.row(draw(source, "needles", 1)[0], random.Random(0)).exact


def test_some_rows_have_an_instruction_in_front(source: SampleSource, text_engine: Any) -> None:
    tokenizer = text_engine.tokenizer
    maker, rng = RowMaker(tokenizer, tokenizer.eos_token), random.Random(0)
    rows = [maker.row(sample, rng) for sample in draw(source, "profile")]
    heads = {tokenizer.decode(row.head) for row in rows if row.head}
    assert heads <= set(HEADS)
    assert len(heads) > 2
    assert 0 < sum(bool(row.head) for row in rows) < len(rows) / 2
    for row in rows:
        parts = [*row.documents, *row.separators, row.turns]
        assert row.n_tokens == len(row.head) + sum(map(len, parts))
