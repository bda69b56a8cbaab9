"""Which words of a text are kept: numbers, codes, addresses and rare names of any script."""

import pytest

from ultragist_rag.memory.spans import code_words, exact_words, flag_words


def kept(text, offsets=None):
    """The characters that are kept, gaps shown as one bar; a token is a character unless told otherwise."""
    offsets = offsets or [(i, i + 1) for i in range(len(text))]
    flags = exact_words(text, offsets)
    shown = "".join(text[a:b] if flag else "|" for (a, b), flag in zip(offsets, flags, strict=True))
    return [part for part in shown.split("|") if part]


def words(text):
    """One token for each word, with the space in front of it, so that no name is rare."""
    stops = [i for i in range(1, len(text)) if text[i] == " "] + [len(text)]
    return list(zip([0, *stops[:-1]], stops, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("we paid $1,234.56 on 2024-05-01, at 10:30.", ["$1,234.56", "2024-05-01", "10:30"]),
        ("id 123e4567-e89b-12d3-a456-426614174000!", ["123e4567-e89b-12d3-a456-426614174000"]),
        ("mail jane.doe+x@mail.example.org, or ring +49-171", ["jane.doe+x@mail.example.org", "+49-171"]),
        ("see https://example.org/a?b=c and python3.11.", ["https://example.org/a?b=c", "python3.11"]),
        ("the code QXZ-PLM, not the NASA one, nor well-known", ["QXZ-PLM"]),
        ("call getUserName or eBay", ["getUserName", "eBay"]),
        ("no numbers here; and/or none at all.", []),
        ("共有１２３人，2024年5月，公园", ["１２３", "2024", "5"]),
        ("هاتف ٠١٢٣ هنا", ["٠١٢٣"]),
        ("минус −12 или x², ЖЩ-ЮЯ", ["−12", "x²", "ЖЩ-ЮЯ"]),
        ("", []),
        (" \n ... --- ?!", []),
    ],
)
def test_words_that_must_be_exact_are_kept_whole(text, expected):
    assert kept(text) == expected


def test_a_name_is_rare_if_it_takes_four_tokens_within_a_sentence_and_kept_once():
    text = "Quixotia lies there. Quixotia is Quixotia, or Quixotia or Ulqoma"
    assert kept(text) == ["Quixotia", "Ulqoma"]
    assert kept(text, words(text)) == []
    assert not code_words(text, words(text)).any()
    assert kept("Capital: Zarvendil\nArea") == ["Zarvendil"]


def test_a_token_is_kept_if_it_shares_a_character():
    assert flag_words([(2, 4), (9, 10)], [(0, 2), (1, 3), (3, 3), (3, 9), (9, 12), (12, 12)]).tolist() == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    assert flag_words([], []).tolist() == []


def test_no_text_takes_more_time_than_its_length():
    for text in ("_" * 60 + ":A", "=".join(["A_B" * 30] * 3), "a" * 40_000):
        assert not code_words(text, [(0, len(text))]).any()
