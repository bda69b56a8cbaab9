"""Markers survive what text goes through, and cannot be guessed."""

import base64
import hashlib
import hmac
import html
import json
import random
from dataclasses import replace

import pytest

from ultragist_rag.store.refs import Recipe, find_broken, identify, neutralise, parse, repair, split, to_marker

NAME = "abcdefghijklmnopqrstuvwx27"
RECIPE = Recipe(model="m", tokenizer="t", config={"window": 8, "ratio": 4}, ratios=(4,))


@pytest.mark.parametrize(
    "change",
    [
        repr,
        json.dumps,
        html.escape,
        str.lower,
        str.upper,
        str.title,
        ascii,
        lambda text: text.format(),
        lambda text: text % (),
        lambda text: text.encode("ascii", "ignore").decode(),
        lambda text: "".join(f" [[{word}]] " for word in text.split()),
        lambda text: f"x{text}0{text}y",
    ],
)
def test_a_marker_survives_what_texts_go_through(change):
    found = [part.name for part in split(change(to_marker(NAME))) if not isinstance(part, str)]
    assert found
    assert set(found) == {NAME}


def test_the_id_is_the_hmac_of_length_prefixed_fields():
    config = b'{"ratio":4,"window":8}'
    fields = [b"1", "namé".encode(), b"m", b"t", config, b"4", b"independent", b"", b"float32", b"a text"]
    record = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    digest = hmac.digest(b"the key", record, hashlib.sha256)
    expected = base64.b32encode(digest[:16])[:26].decode().lower()
    assert identify(b"the key", "namé", RECIPE, "a text") == expected


def test_every_part_of_the_recipe_changes_the_id():
    changed = [
        replace(RECIPE, **change)
        for change in (
            {"model": "n"},
            {"tokenizer": "u"},
            {"config": {"window": 9, "ratio": 4}},
            {"ratios": (8,)},
            {"ratios": (4, 4)},
            {"mode": "joint"},
            {"verbatim": "digits"},
            {"dtype": "bfloat16"},
        )
    ]
    names = {identify(b"key", "a", recipe, "text") for recipe in [RECIPE, *changed]}
    names |= {identify(b"key", "b", RECIPE, "text"), identify(b"yek", "a", RECIPE, "text")}
    names |= {identify(b"key", "a", RECIPE, "other"), identify(b"key", "a", RECIPE, "")}
    assert len(names) == len(changed) + 5


def test_fields_cannot_run_into_each_other():
    one = identify(b"key", "ab", replace(RECIPE, model="c"), "text")
    assert one != identify(b"key", "a", replace(RECIPE, model="bc"), "text")


def test_split_and_join_give_the_text_back():
    text = f"a {to_marker(NAME)} b {to_marker('q' * 26).upper()}{to_marker(NAME)}"
    parts = split(text)
    assert "".join(part if isinstance(part, str) else text[part.start : part.stop] for part in parts) == text
    assert [part.name for part in parts if not isinstance(part, str)] == [NAME, "q" * 26, NAME]
    assert split("") == []
    assert split("no marker") == ["no marker"]


@pytest.mark.parametrize(
    "text",
    [
        "ultragist0" + "a" * 25 + "0",
        "ultragist0" + "a" * 27 + "0",
        "ultragist0" + "1" * 26 + "0",
        "ultragi\u017ft0" + "a" * 26 + "0",  # long s: the same letter when case is ignored in Unicode
        "ultragist0" + "\u212a" * 26 + "0",  # Kelvin sign
        "",
    ],
)
def test_what_is_almost_a_marker_is_text(text):
    assert parse(text) is None
    assert all(isinstance(part, str) for part in split(text))


def test_neutralised_texts_carry_no_marker_even_side_by_side():
    random.seed(5)
    marker = to_marker(NAME)
    for _ in range(300):
        cut = random.randrange(10, len(marker))
        left, right = neutralise(f"x {marker[:cut]}"), neutralise(f"{marker[cut:]} {marker.upper()}")
        assert all(isinstance(part, str) for part in split(left + right))
        assert neutralise(left) == left
    assert neutralise("harmless, ultragist 0") == "harmless, ultragist 0"


def test_guessing_ids_without_the_secret_finds_nothing():
    true = identify(b"the true secret", "acme", RECIPE, "text")
    guesses = {identify(f"guess {number}".encode(), "acme", RECIPE, "text") for number in range(2000)}
    plain = base64.b32encode(hashlib.sha256(b"text").digest()[:16])[:26].decode().lower()
    assert true not in guesses
    assert true != plain


MARKER = to_marker(NAME)
SEPARATORS = ["\n", "\n    ", "\r\n", "\\n", "\\n  ", "\\\\n", " "]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_marker_that_wrapping_broke_is_joined(separator):
    for cut in range(1, len(MARKER)):
        for marker in (MARKER, MARKER.upper()):
            text = f"see {marker[:cut]}{separator}{marker[cut:]} and"
            assert repair(text) == f"see {marker} and"
            assert find_broken(repair(text)) is None


def test_a_marker_in_many_lines_is_joined_if_its_head_is_whole():
    lines = [MARKER[start : start + 10] for start in range(0, len(MARKER), 10)]
    assert repair("\n".join(lines)) == MARKER
    assert find_broken(repair("ultr\nagist0\n" + MARKER[10:])) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ultragist is the name, version 0",
        "The ultragist method reads 20 windows\nof 260 tokens each.",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
        "0123456789abcdefghijklmnopqrstuvwxyz",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "550e8400-e29b-41d4-a716-446655440000, commit 7a3bc4d5e60",
        "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP and 1000000000000000000000000000000",
        "Rechtsschutzversicherungsgesellschaften0, donaudampfschifffahrt20",
        "dQw4w9WgXcQabcdefghijklmn2pQ0 mixed case",
        "a marker of the kind ultragist-0 and more",
    ],
)
def test_prose_names_and_numbers_are_no_parts_of_markers(text):
    assert find_broken(text) is None
    assert repair(text) == text
    assert neutralise(text) == text


def test_neutralised_texts_complete_no_marker_however_they_are_joined():
    for separator in ["", *SEPARATORS]:
        for cut in range(1, len(MARKER)):
            for wrap in ("", "\n"):
                right = MARKER[cut:-8] + wrap + MARKER[-8:] if cut < 29 else MARKER[cut:]
                one, other = neutralise(f"x {MARKER[:cut]}"), neutralise(f"{right} y")
                joined = repair(f"{one}{separator}{other}")
                assert [part for part in split(joined) if not isinstance(part, str)] == [], (separator, cut, wrap)


def test_what_is_neutralised_is_neither_marker_nor_part_of_one():
    draw = random.Random(11)
    for _ in range(500):
        start, stop = sorted((draw.randrange(len(MARKER) + 1), draw.randrange(len(MARKER) + 1)))
        middle = draw.choice(["", *SEPARATORS])
        text = f"{draw.choice(['', 'x ', '(', 'l'])}{MARKER[start:stop]}{middle}{MARKER[stop:]} {MARKER[start:]}"
        harmless = neutralise(text)
        assert find_broken(repair(harmless)) is None, text
        assert all(isinstance(part, str) for part in split(repair(harmless)))
        assert neutralise(harmless) == harmless
        assert harmless.replace("-", "") == text
