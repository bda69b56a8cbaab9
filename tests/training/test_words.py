"""Words and phrases of texts: what is drawn stands in them, and what is left out is not drawn."""

from __future__ import annotations

import lzma
import random
import re
import shutil
from pathlib import Path

import pytest

from ultragist_rag.errors import TrainingError
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.profiles import invented_facts, reordered, scramble
from ultragist_rag.training.samples import Recipe, SampleSource
from ultragist_rag.training.setup import make_source
from ultragist_rag.training.words import Words

TEXT = "The old harbour of Norvik lies behind Ostrava, where Mirela sold whales and boats to sailors. " * 4
WORDS = Words([TEXT], {"ostrava", "Whales"})
SPLIT = re.compile(r"[^\W\d_]+")


def test_words_are_those_of_the_texts_and_have_the_case_that_is_asked_for() -> None:
    rng = random.Random(0)
    names = {WORDS.like("Paris", rng) for _ in range(200)}
    others = {WORDS.like("paris", rng) for _ in range(500)}
    assert names == {"The", "Norvik", "Mirela"}
    assert others == {"old", "harbour", "lies", "behind", "where", "sold", "and", "boats", "sailors"}
    assert {word for _ in range(50) for word in WORDS.name(rng).split()} == names


def test_phrases_stand_in_the_text_and_hold_nothing_that_is_left_out() -> None:
    rng = random.Random(0)
    phrases = [WORDS.phrase(rng, 3) for _ in range(200)]
    assert len(set(phrases)) > 10
    assert all(1 <= len(phrase.split(" ")) <= 3 and phrase in TEXT for phrase in phrases)
    assert not any(word in phrase for phrase in phrases for word in ("Ostrava", "whales"))
    assert phrases[0] == WORDS.phrase(random.Random(0), 3)


def test_common_words_are_drawn_more_often_than_rare_ones() -> None:
    words = Words(["common " * 50 + "Name " * 50 + " ".join(f"rare{'abcdefghij'[i]}" for i in range(10))])
    rng = random.Random(0)
    drawn = [words.like("x", rng) for _ in range(300)]
    assert drawn.count("common") > 2 * 300 / 11
    assert len(set(drawn)) == 11


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(TrainingError, match="1 texts, of which 0 have more than 160 characters"):
        Words(["Too short a text"])


def test_where_no_phrase_fits_names_are_drawn() -> None:
    words = Words(["Only *Names* (and) [brackets] {everywhere} " * 10])
    assert words.phrase(random.Random(0), 1) in {"Only", "Names", "Names Only", "Only Names", "Names Names"}


def test_scrambling_with_real_words_replaces_words_in_lower_case_and_codes_too() -> None:
    seen: dict[str, str] = {"lies": "lies"}
    text = "Lima lies by rivers and by rivers; code .pe, 123 m"
    new = scramble(text, random.Random(3), 1.0, seen, WORDS)
    assert new.count(seen["rivers"]) == 2
    assert " lies by " in new
    assert seen["Lima"] != "Lima"
    assert re.fullmatch(r"[a-z]{2}", seen["pe"])
    assert [len(part) for part in re.findall(r"\d+", new)] == [3]


def test_values_of_invented_places_are_of_words_that_the_texts_hold(country_data: Path) -> None:
    source = SampleSource(country_data)
    rng = random.Random(0)
    known = {word for values in source.pool.values() for value in values for word in SPLIT.findall(value)}
    facts = [invented_facts(source.pool, rng, WORDS) for _ in range(50)]
    new = {word for one in facts for value in one.values() for word in SPLIT.findall(value)} - known
    assert {"harbour", "sailors"} <= new
    plain = [invented_facts(source.pool, random.Random(0)) for _ in range(50)]
    assert not {"harbour", "sailors"} & {
        word for one in plain for value in one.values() for word in SPLIT.findall(value)
    }


def test_lists_are_put_into_another_order_in_answers_too() -> None:
    text = (
        "rye, oats, peas, beans\nProducts: milk, wheat, pork; few\nCrops: rye, oats, peas, beans\nLand: hills, plains"
    )
    told = "Past: It was old, then it fell, and was built again. Now, it is new"
    asked = [("Which crops?", "rye, oats, peas, beans"), ("Which land?", "hills, plains")]
    new, pairs = reordered(f"{text}\n{told}", asked, random.Random(0))
    lines = new.splitlines()
    assert [lines[0], lines[1], *lines[3:]] == [*text.splitlines()[:2], text.splitlines()[3], told]
    assert pairs[0] == ("Which crops?", lines[2].removeprefix("Crops: "))
    assert sorted(pairs[0][1].split(", ")) == ["beans", "oats", "peas", "rye"]
    assert pairs[0][1] != asked[0][1]
    assert pairs[1] == asked[1]


def test_labels_and_groups_of_factbook_chunks_stay(country_data: Path) -> None:
    source, rng = SampleSource(country_data), random.Random(0)
    labels = {"Location", "Area", "Coastline", "Elevation", "Climate", "Population", "Languages"}
    recipe = Recipe({"factbook": 1.0}, (1, 1), (3, 8), 8, 300, real_words=True)
    documents = [source.draw(recipe, rng).documents[0] for _ in range(30)]
    found = {line.partition(":")[0] for text in documents for line in text.splitlines()[2:]}
    assert labels <= found <= labels | {"", "total", "highest point", "lowest point"}


def test_texts_without_words_are_refused_before_a_run_begins(tiny_run: TrainConfig, tmp_path: Path) -> None:
    stage = tiny_run.stages[0].model_copy(update={"real_words": True})
    config = tiny_run.model_copy(update={"stages": (stage,)})
    assert make_source(config)
    data = shutil.copytree(config.data, tmp_path / "short")
    for path in (data / "train").glob("wikipedia*"):
        with lzma.open(path, "wt", encoding="utf-8") as file:
            file.write('{"title": "t", "text": "short"}\n')
    with pytest.raises(TrainingError, match="no words for real_words"):
        make_source(config.model_copy(update={"data": data}))
