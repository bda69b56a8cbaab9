import pytest
import torch
from asking import TOKENIZER, asking_engine
from plain import random_memory

from ultragist_rag.errors import InputError
from ultragist_rag.memory.generate import generate

N = 12


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def ids_of(engine, pieces, **settings):
    return generate(engine, pieces, **{"max_new_tokens": N, "return_ids": True, **settings})


def test_seeded_draws_are_repeatable_and_leave_the_global_generator_alone(engine):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = ids_of(engine, "the fox", do_sample=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(ids_of(engine, "the fox", do_sample=True, seed=3), first)
    assert not torch.equal(ids_of(engine, "the fox", do_sample=True, seed=4), first)


def test_draws_without_seed_follow_the_global_generator(engine):
    torch.manual_seed(5)
    first, second = (ids_of(engine, "the fox", do_sample=True) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(ids_of(engine, "the fox", do_sample=True), first)


def test_several_draws_differ_and_the_first_is_the_single_one(engine):
    memory = random_memory(engine.attachment.model, 5, lead_token=1)
    batch = [[memory, " the fox"], ["lazy dog"]]
    several = ids_of(engine, batch, do_sample=True, seed=3, num_return_sequences=3)
    assert [len(rows) for rows in several] == [3, 3]
    for pieces, rows in zip(batch, several, strict=True):
        assert len({tuple(row[0].tolist()) for row in rows}) == 3
        assert torch.equal(rows[0], ids_of(engine, pieces, do_sample=True, seed=3))
    texts = generate(engine, batch[0], do_sample=True, seed=3, num_return_sequences=3, max_new_tokens=N)
    assert texts == [TOKENIZER.decode(row[0], skip_special_tokens=True) for row in several[0]]


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}])
def test_draws_have_the_distribution_of_the_model(engine, settings):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warper = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    ids = torch.tensor([[1, 50, 60]])
    scores = engine.attachment.model(ids).logits[:, -1]
    for name, value in settings.items():
        scores = warper[name](value)(ids, scores)
    expected = scores.softmax(-1)[0]
    n = 2000
    rows = generate(
        engine, [ids], do_sample=True, seed=1, num_return_sequences=n, max_new_tokens=1, return_ids=True, **settings
    )
    counts = torch.bincount(torch.cat(rows).flatten(), minlength=320) / n
    assert (counts[expected == 0] == 0).all()
    assert (counts - expected).abs().sum() < 4 * (expected * (1 - expected) / n).sqrt().sum()


def test_temperature_zero_is_greedy(engine):
    assert torch.equal(ids_of(engine, "the fox", do_sample=True, temperature=0), ids_of(engine, "the fox"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 5}, "unknown settings max_tokens"),
        ({"max_length": 5}, "max_length"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"do_sample": True, "num_beams": 2}, "beams"),
        ({"num_return_sequences": 2}, "equal"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_bad_settings_are_refused(engine, settings, message):
    with pytest.raises(InputError, match=message):
        generate(engine, "text", **settings)
