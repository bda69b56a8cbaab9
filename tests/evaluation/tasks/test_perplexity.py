"""Contexts and targets are the text as it is: joined again, they give it back."""

from __future__ import annotations

import lzma
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks.perplexity import TASKS, _own

BY_NAME = {task.name: task for task in TASKS}
SEGMENTS, SLIDING = BY_NAME["perplexity/wikitext2"], BY_NAME["perplexity/wikitext2_sliding"]
TEXT = "\n".join(
    f" = Lake {number} = \n \n The lake is {number} m deep , and <unk> lies on its shore . \n  It is \t old ."
    for number in range(60)
)


def source(task: Task, **settings: Any) -> Source:
    words = {"room": 100, "count": lambda text: len(text.split()), "window": 40}
    return Source(**{"task": task.name, "files": task.files, **words, **settings})


def load(task: Task, **settings: Any) -> list[Sample]:
    return list(task.load(source(task, **settings)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "wikitext2_valid.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    return tmp_path


def n_words(text: str) -> int:
    return len(text.split())


def test_segments_joined_are_the_text(place: Path) -> None:
    samples = load(SEGMENTS, place=place)
    joined = "".join(sample.documents[0] + sample.choices[0] for sample in samples)
    assert TEXT.startswith(joined)
    assert n_words(TEXT) - n_words(joined) < 90  # but for an end that is no whole segment
    assert {n_words(sample.documents[0]) for sample in samples} == {50}
    assert {n_words(sample.choices[0]) for sample in samples} == {40}
    assert len({sample.id for sample in samples}) == len(samples) > 5


def test_targets_of_a_sliding_window_joined_are_the_text(place: Path) -> None:
    samples = load(SLIDING, place=place)
    joined = samples[0].documents[0] + "".join(sample.choices[0] for sample in samples)
    assert TEXT.startswith(joined)
    assert n_words(TEXT) - n_words(joined) < 16
    for sample in samples:
        assert sample.documents[0] + sample.choices[0] in TEXT
        assert (n_words(sample.documents[0]), n_words(sample.choices[0])) == (50, 16)
    assert len(samples) > 50


def test_steps_are_an_eighth_of_a_window_and_not_too_many(place: Path) -> None:
    assert {n_words(sample.choices[0]) for sample in load(SLIDING, place=place, window=160)} == {20}
    long = " ".join(map(str, range(9000)))
    (place / "wikitext2_valid.txt").write_text(long, encoding="utf-8")
    numbers = [int(sample.choices[0].split()[0]) for sample in load(SLIDING, place=place)]
    assert len(numbers) == 256
    assert {after - before for before, after in pairwise(numbers)} == {32, 48}  # steps of 16, at even distances
    assert (numbers[0], numbers[-1] > 8900) == (50, True)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_cuts_lie_in_front_of_blanks_and_fit(task: Task, place: Path) -> None:
    for sample in load(task, place=place):
        (context,), (target,) = sample.documents, sample.choices
        assert re.match(r"\s\s*\S", target)
        assert re.search(r"\S\Z", context)
        assert n_words(context) <= 50
        assert (sample.tail, sample.head, task.separator) == ("", "", "")
        assert (task.kind, task.metric, task.lower_is_better) == ("perplexity", "ppl", True)


@pytest.mark.parametrize("name", ["own_segments", "own_sliding"])
def test_own_text_is_long_enough_and_the_same_for_equal_seeds(name: str) -> None:
    task = BY_NAME[f"perplexity/{name}"]
    samples = load(task)
    assert samples == load(task) != load(task, seed=1)
    assert len(samples) >= 12
    bytes_ = load(task, room=700, window=64, count=lambda text: len(text.encode()))
    assert all(320 < len(sample.documents[0].encode()) < 380 for sample in bytes_)
    assert len(bytes_) >= 12


def test_own_text_says_everything_again_in_other_words() -> None:
    text = _own(source(BY_NAME["perplexity/own_segments"], room=1000))
    pages = [page.split("\n") for page in text.strip().split("\n\n")]
    headers, bodies = [page[0] for page in pages[::2]], pages[1::2]
    again = [at for at, header in enumerate(headers) if header in headers[:at]]
    assert len(again) >= len(headers) // 2 - 2
    for at in again:
        before = headers.index(headers[at])
        assert len(bodies[at]) == len(bodies[before])
        assert not set(bodies[at]) & set(bodies[before])
        words = set(" ".join(bodies[before]).replace(".", " ").split())
        shared = sum(word in words for word in " ".join(bodies[at]).replace(".", " ").split())
        assert shared > len(bodies[at])


def test_a_text_that_is_too_short_is_said(tmp_path: Path) -> None:
    (tmp_path / "wikitext2_valid.txt").write_text("Only a few words.", encoding="utf-8")
    with pytest.raises(MissingDataError, match="too short for contexts of 50 tokens"):
        load(SEGMENTS, place=tmp_path)
