"""Likelihoods are those of the plain model, choices the likeliest ones, and answers those of the front door."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.asking import ask, log_likelihoods, prompt_of
from ultragist_rag.evaluation.scores import accuracy
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.memory.text import TextCodec

SAMPLE = Sample(id="1", documents=("one", "two"), tail=" Which?", head="Read. ", choices=(" first", " second one"))
TASK = Task(name="a/b", load=lambda _: [], score=lambda s, p: accuracy(p, s.answers), metric="accuracy", n_new=5)


@torch.no_grad()
def _slow(engine: Any, prompt: str, text: str, skip: int = 0) -> float:
    """Sum of log-probabilities from one plain forward over everything."""
    codec = TextCodec.of(engine.tokenizer)
    before = torch.cat((torch.tensor([engine.lead_token]), codec.encode(prompt)))
    ids = codec.encode(text, first=False)
    logits = engine.model(torch.cat((before, ids))[None]).logits[0].log_softmax(-1)
    return sum(float(logits[len(before) + i - 1, ids[i]]) for i in range(skip, len(ids)))


def test_likelihoods_equal_those_of_a_plain_forward(text_engine: Any) -> None:
    prompt, texts = "Some text in front.", [" and", " something longer", "?"]
    for skip in (False, True):
        usable = texts[:2] if skip else texts
        rows = log_likelihoods(text_engine, [prompt], usable, skip_first=skip)
        for text, (total, n_tokens) in zip(usable, rows, strict=True):
            assert n_tokens == len(text) - skip  # a token is a byte
            assert total == pytest.approx(_slow(text_engine, prompt, text, int(skip)), abs=1e-4)
    with pytest.raises(InputError, match="too few tokens"):
        log_likelihoods(text_engine, [prompt], ["?"], skip_first=True)


def test_a_memory_may_stand_right_in_front_of_a_text(text_engine: Any) -> None:
    memory = text_engine.compress("what was said before", ratio=4)
    ((total, n_tokens),) = log_likelihoods(text_engine, [memory], [" comes next"], skip_first=True)
    assert (n_tokens, total < 0) == (10, True)
    ((again, _),) = log_likelihoods(text_engine, [memory, " "], ["comes next"])
    assert total == pytest.approx(again, abs=1e-4)


def test_the_likeliest_choice_is_taken(text_engine: Any) -> None:
    asked = ask(text_engine, replace(TASK, kind="choose"), SAMPLE, ["one two"])
    means = [_slow(text_engine, "Read. one two Which?", text) / len(text) for text in SAMPLE.choices]
    assert asked.prediction == SAMPLE.choices[means.index(max(means))]
    with pytest.raises(InputError, match="no choices"):
        ask(text_engine, replace(TASK, kind="choose"), replace(SAMPLE, choices=()), ["one"])


def test_perplexity_leaves_the_first_token_out(text_engine: Any) -> None:
    sample = Sample(id="1", documents=("before",), tail="", choices=(" behind it",))
    asked = ask(text_engine, replace(TASK, kind="perplexity"), sample, ["before"])
    assert asked.scores["tokens"] == 9
    assert asked.scores["nll"] == pytest.approx(-_slow(text_engine, "before", " behind it", 1) / 9, abs=1e-5)


def test_ids_alone_have_the_lead_token_in_front_as_texts_have(text_engine: Any) -> None:
    ids = TextCodec.of(text_engine.tokenizer).encode("before")
    (by_ids,) = log_likelihoods(text_engine, [ids], [" behind it"], skip_first=True)
    (by_text,) = log_likelihoods(text_engine, ["before"], [" behind it"], skip_first=True)
    assert by_ids == pytest.approx(by_text, abs=1e-5)
    ((closed, _),) = log_likelihoods(text_engine, [], [" behind it"], skip_first=True)
    assert closed == pytest.approx(_slow(text_engine, "", " behind it", 1), abs=1e-4)


def test_answers_are_those_of_the_front_door(text_engine: Any) -> None:
    memory = text_engine.compress("a document", ratio=4)
    asked = ask(text_engine, TASK, SAMPLE, [memory])
    expected = text_engine.generate(["Read. ", memory, " Which?"], max_new_tokens=5, stop=["\n"])
    assert asked.prediction == expected.strip()
    assert 0 < asked.first_token <= asked.total


def test_a_joint_memory_has_the_head_inside(text_engine: Any) -> None:
    memory = text_engine.compress("Read. one", ratio=4, joint=True)
    assert prompt_of(SAMPLE, [memory]) == [memory, " Which?"]
    assert prompt_of(SAMPLE, ["one"]) == ["Read. ", "one", " Which?"]
    assert prompt_of(replace(SAMPLE, tail=""), ["one"]) == ["Read. ", "one"]
