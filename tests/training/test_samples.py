"""Answers stand in their documents, held-out countries in none, and equal seeds draw equal samples."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.country_fields import FIELDS
from ultragist_rag.training.jsonl import JsonlSource
from ultragist_rag.training.profiles import facts_of, held_out, invented_name, profile_lines, read_figures, scramble
from ultragist_rag.training.samples import Recipe, Sample, SampleSource

ALL = Recipe({"labels": 1.0, "profile": 1.0, "factbook": 1.0, "text": 1.0}, (1, 4), (3, 9), 8)


def _draw(data: Path, count: int, seed: int = 0) -> list[Sample]:
    source, rng = SampleSource(data), random.Random(seed)
    return [source.draw(ALL, rng) for _ in range(count)]


def test_every_answer_stands_in_a_document(country_data: Path) -> None:
    samples = _draw(country_data, 100)
    asked = [(answer, sample) for sample in samples for _, answer in sample.pairs]
    assert len(asked) > 100
    assert all(any(answer in text for text in sample.documents) for answer, sample in asked)


def test_a_value_of_a_chunk_is_asked_for_once(country_data: Path) -> None:
    source, rng = SampleSource(country_data), random.Random(0)
    samples = [source.draw(Recipe({"factbook": 1.0}, questions=100), rng) for _ in range(50)]
    answers = [[answer for _, answer in sample.pairs] for sample in samples]
    assert all(len(set(some)) == len(some) for some in answers)
    assert max(map(len, answers)) > 1
    questions = {question for sample in samples for question, _ in sample.pairs}
    assert len(questions) > len({answer for some in answers for answer in some})


def test_no_sample_names_a_held_out_country(country_data: Path) -> None:
    source = SampleSource(country_data)
    assert source.held_out == {"Hestaland"}
    for sample in _draw(country_data, 100):
        assert "Hesta" not in " ".join((*sample.documents, *map(str, sample.pairs)))


def test_equal_seeds_draw_equal_samples(country_data: Path) -> None:
    assert _draw(country_data, 20, seed=3) == _draw(country_data, 20, seed=3)
    assert _draw(country_data, 20, seed=3) != _draw(country_data, 20, seed=4)


def test_every_field_has_wordings_for_training_and_others_for_measuring() -> None:
    for field in FIELDS:
        train, heldout = set(field.train_wordings()), set(field.heldout_wordings())
        assert len(train) >= 5
        assert len(heldout) >= 2
        assert not train & heldout
        assert all("{c}" in wording for wording in train | heldout | set(field.statements))


def test_figures_become_facts_and_facts_sentences() -> None:
    geography = "## Geography\n\nArea\ntotal: 1,098,581 sq km\n\nCoastline: 0 km (landlocked)\n\n"
    text = geography + "## Government\n\nCapital\nname: La Paz (seat); Sucre\n"
    facts = facts_of(read_figures(text))
    assert facts == {"total_area": "1,098,581 sq km", "coastline": "0 km", "capital": "La Paz"}
    lines = profile_lines("Bolivia", facts, random.Random(0))
    told = {line.field.key: line for lines in lines.values() for line in lines if line.field}
    assert set(told) == set(facts)
    assert all(facts[key] in line.text and "Bolivia" in line.text for key, line in told.items())


def test_held_out_takes_every_tenth_title_from_the_eighth() -> None:
    titles = [f"{number:02d}" for number in range(30)]
    assert held_out(titles) == {"07", "17", "27"}


def test_scrambling_changes_digits_and_keeps_what_is_seen() -> None:
    seen = {"Togo": "Togo"}
    text = scramble("Togo has 123 ships and 123 boats", random.Random(1), 1.0, seen)
    assert text.startswith("Togo has ")
    assert seen["123"] != "123"
    assert text.count(seen["123"]) == 2
    assert invented_name(random.Random(0)) == invented_name(random.Random(0))


def test_json_lines_that_are_no_samples_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps({"documents": ["d"]}) + "\n", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"a\.jsonl:2"):
        JsonlSource(path)
    with pytest.raises(TrainingError, match=r"no \.jsonl files"):
        JsonlSource(tmp_path / "missing.jsonl")
    path.write_text(json.dumps({"text": "fine"}) + "\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="questions"):
        JsonlSource(path).draw(Recipe({"questions": 1.0}), random.Random(0))
