"""Needles and evidence stand where they are said to, and scores tell the digits apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks import failures
from ultragist_rag.evaluation.tasks.failures import DIGITS, GROUPS, TASKS, cut_lengths, last_tokens

SURPRISE, ALONG, CUT = TASKS


def words(text: str) -> int:
    """A token of these tests is a word or a mark."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def load(task: Any, seed: int = 0, **settings: Any) -> list[Sample]:
    return list(task.load(Source(task=task.name, count=words, seed=seed, **{"room": 1024, "window": 256, **settings})))


@pytest.fixture(scope="module", autouse=True)
def _few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_N_BASES", "_N_CODES", "_N_TEXTS"):
            patch.setattr(failures, name, 4)
        yield


@pytest.fixture(scope="module")
def loaded(_few: None) -> dict[str, list[Sample]]:
    return {task.name: load(task) for task in TASKS}


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_equal_seeds_give_equal_samples_with_names_of_their_own(task: Any, loaded: dict[str, list[Sample]]) -> None:
    samples = loaded[task.name]
    assert samples == load(task) != load(task, seed=1)
    assert len({sample.id for sample in samples}) == len(samples)
    assert {task.score(sample, sample.answers[0])[task.metric] for sample in samples} == {1.0}
    assert {task.score(sample, "nothing of the kind")[task.metric] for sample in samples} == {0.0}


@pytest.mark.parametrize("task", TASKS[:2], ids=[task.name for task in TASKS[:2]])
def test_a_needle_stands_in_one_document_once(task: Any, loaded: dict[str, list[Sample]]) -> None:
    for sample in loaded[task.name]:
        everything = "\n".join(sample.documents)
        (gold,) = sample.gold
        assert everything.count(sample.answers[0]) == 1
        assert f"\n{sample.notes['needle']}" in sample.documents[gold]
        assert sample.notes["subject"] in sample.tail
        assert sum(words(one) for one in sample.documents) < 1024


def test_an_irrelevant_subject_is_named_by_its_needle_alone(loaded: dict[str, list[Sample]]) -> None:
    for sample in loaded[SURPRISE.name]:
        in_gold = sample.documents[sample.gold[0]].count(sample.notes["subject"])
        everywhere = "\n".join(sample.documents).count(sample.notes["subject"])
        assert (everywhere == 1) == sample.group.startswith("irrelevant")
        assert in_gold == everywhere


def test_conditions_of_one_base_differ_in_the_needle_alone(loaded: dict[str, list[Sample]]) -> None:
    samples = loaded[SURPRISE.name]
    n = len(samples) // len(GROUPS)
    assert [sample.group for sample in samples] == [group for group in GROUPS for _ in range(n)]
    for base in range(n):
        four = samples[base::n]
        bare = {
            tuple(
                text.replace(one.notes["needle"] + "\n", "").replace("\n" + one.notes["needle"], "") for text in texts_
            )
            for one in four
            for texts_ in [one.documents]
        }
        assert len(bare) == len({one.gold for one in four}) == 1
        assert [four[0].answers, four[1].answers] == [four[2].answers, four[3].answers]


@pytest.mark.parametrize(
    ("said", "right"),
    [("{v}", 32), ("It is {v}.", 32), ("{dashed}", 32), ("{v8}", 8), ("{v8}0{v}", 8), ("a fact", 0), ("", 0)],
)
def test_first_digits_are_compared_one_by_one(said: str, right: int) -> None:
    value = "3f2b9a2d43b4dd589f07848a2a0929bc"
    dashed = f"{value[:8]}-{value[8:12]}-{value[12:]}"
    sample = Sample(id="0", documents=("",), tail="", answers=(value,))
    scores = ALONG.score(sample, said.format(v=value, dashed=dashed, v8=value[:8]))
    assert scores == {f"first_{n}": float(n <= right) for n in DIGITS}


def test_a_cut_context_has_its_length_and_the_sentence_that_answers(loaded: dict[str, list[Sample]]) -> None:
    lengths = cut_lengths(256, 1024)
    assert lengths == (224, 256, 288, 384, 480, 512, 544, 640)
    by_group: dict[str, list[Sample]] = {}
    for sample in loaded[CUT.name]:
        by_group.setdefault(sample.group, []).append(sample)
        (text,) = sample.documents
        assert sample.notes["evidence"] in text
        assert sample.answers[0] in sample.notes["evidence"]
        assert words(text) == int(sample.group)
    assert list(by_group) == [f"{length:05}" for length in lengths]
    shorter, longer = by_group["00224"], by_group["00640"]
    assert [one.tail for one in shorter] == [one.tail for one in longer]
    assert all(long.documents[0].endswith(short.documents[0]) for short, long in zip(shorter, longer, strict=True))


def test_lengths_beyond_the_room_are_left_out_and_a_window_beyond_it_is_said() -> None:
    assert cut_lengths(256, 300) == (224, 256, 288)
    with pytest.raises(MissingDataError, match="less than a window of 2048"):
        load(CUT, window=2048)
    with pytest.raises(MissingDataError, match="no sentence fits into 3 tokens"):
        load(CUT, window=4, room=64)


@pytest.mark.parametrize("n_tokens", [0, 1, 5, 50])
def test_last_tokens_are_the_longest_end_that_fits(n_tokens: int) -> None:
    text = "one two three. " * 5
    end = last_tokens(text, n_tokens, words)
    assert text.endswith(end)
    assert words(end) <= n_tokens
    assert end == text or words(text[-len(end) - 1 :]) > n_tokens


def test_a_smaller_room_has_fewer_documents() -> None:
    few, many = load(SURPRISE, room=512), load(SURPRISE, room=2048)
    assert {len(sample.documents) for sample in few} == {2}
    assert {len(sample.documents) for sample in many} == {8}
