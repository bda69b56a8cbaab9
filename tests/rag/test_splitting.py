"""The bodies of the chunks, one behind the other, are the text's lines; no chunk is longer than the limit."""

from __future__ import annotations

import random

import pytest

from ultragist_rag import InputError
from ultragist_rag.rag import split_text


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices("abcdefg", k=rng.randint(1, 9))) for _ in range(count))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [130, 400, 1000])
def test_nothing_is_lost_and_no_chunk_is_too_long(seed: int, limit: int) -> None:
    rng = random.Random(seed)
    lines = [words(rng, rng.randint(1, 120)) for _ in range(12)]
    chunks = split_text("\n\n".join(lines), "a.txt", title="A", max_chars=limit)
    assert max(len(chunk.text) for chunk in chunks) <= limit
    assert [chunk.text.split("\n", 1)[0] for chunk in chunks] == ["A"] * len(chunks)
    bodies = [word for chunk in chunks for word in chunk.text.split("\n", 1)[1].split()]
    assert bodies == " ".join(lines).split()


def test_a_chunk_holds_as_many_lines_as_fit() -> None:
    chunks = split_text("\n".join(["x" * 49] * 10), "a.txt", title="A", max_chars=2 + 50 * 4 - 1)
    assert [chunk.text.count("\n") for chunk in chunks] == [4, 4, 2]


def test_long_line_is_cut_behind_a_sentence() -> None:
    sentence = "This sentence has forty characters, all. "
    chunks = split_text(sentence * 4, "a.txt", title="A", max_chars=2 + 100)
    assert [chunk.text for chunk in chunks] == ["A\n" + (sentence * 2).strip()] * 2


def test_word_longer_than_a_chunk_is_cut_anywhere() -> None:
    chunks = split_text("y" * 250, "a.txt", title="A", max_chars=102)
    assert [len(chunk.text) - 2 for chunk in chunks] == [100, 100, 50]


def test_headings_name_chunks_and_no_chunk_spans_two_sections() -> None:
    text = "# Norway\nNorth.\n## Economy\nOil.\n### Fish\nCod.\n# Chad\nDry.\n#hashtag"
    chunks = split_text(text, "x.md")
    assert [(chunk.title, chunk.section) for chunk in chunks] == [
        ("Norway", ""),
        ("Norway", "Economy"),
        ("Norway", "Fish"),
        ("Chad", ""),
    ]
    assert chunks[-1].text == "Chad\nDry.\n#hashtag"


def test_text_without_content_gives_no_chunk() -> None:
    assert split_text("# Only\n\n## Headings\n", "x.md") == []


def test_header_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InputError, match="leaves 99 of 200"):
        split_text("# " + "t" * 100 + "\nbody", "x.md", max_chars=200)
