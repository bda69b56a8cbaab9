import pytest
import torch
from asking import asking_engine
from plain import random_memory

from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer, askable
from ultragist_rag.memory.rows import Row, decode_rows, n_side_by_side

N = 12


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


@pytest.fixture(scope="module")
def prompts(engine):
    first, second = (random_memory(engine.attachment.model, n, n, lead_token=1) for n in (5, 11))
    pieces = [["the quick brown fox"], [first, " what is it?"], ["read: ", second, " and ", first, " then answer"]]
    return askable(engine, pieces, Decoding())


def how(**settings):
    return Decoding.of({"max_new_tokens": N, **settings})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_with_settings_of_their_own_get_the_answers_they_get_alone(engine, prompts, attention):
    engine.attachment.model.set_attn_implementation(attention)
    ways = [how(), how(do_sample=True, seed=1, top_k=5, max_new_tokens=5), how(do_sample=True, seed=1, stop="a")]
    for shift in range(3):
        rows = [Row(engine, prompt, ways[(number + shift) % 3]) for number, prompt in enumerate(prompts)]
        assert n_side_by_side(rows, engine.attachment.n_positions) == 3
        decode_rows(engine, rows)
        for row in rows:
            [[alone]] = answer(engine, [row.prompt], row.decoding)
            assert row.ids[: len(alone.ids)] == alone.ids.tolist()
            assert row.is_over
            if alone.finish != "stop":  # the tokens of a stop text are not part of the answer
                assert len(row.ids) == len(alone.ids)
    engine.attachment.model.set_attn_implementation("sdpa")


def test_a_row_alone_may_have_any_setting_of_transformers(engine, prompts):
    row = Row(engine, prompts[1], how(repetition_penalty=1.8, stopping_criteria=[lambda ids, scores, **_: False]))
    decode_rows(engine, [row])
    [[alone]] = answer(engine, [row.prompt], row.decoding)
    assert row.ids == alone.ids.tolist()


def test_tokens_are_given_as_they_come_and_not_again_when_a_row_begins_anew(engine, prompts):
    given = []
    row = Row(engine, prompts[0], how(), given.append)
    decode_rows(engine, [row])
    row.is_over = False
    decode_rows(engine, [row])
    assert given == row.ids


@pytest.mark.parametrize(
    ("settings", "n"),
    [
        ([{}, {"do_sample": True}, {"stop": "x"}, {"max_new_tokens": 3}], 4),
        ([{}, {"num_beams": 2}, {}], 1),
        ([{}, {}, {"repetition_penalty": 2.0}], 2),
        ([{"repetition_penalty": 2.0}, {"repetition_penalty": 2.0}], 1),
        ([{"eos_token_id": 5}, {"eos_token_id": [5]}, {"eos_token_id": 6}], 2),
        ([{}, {"do_sample": True, "num_return_sequences": 2}], 1),
    ],
)
def test_rows_stand_side_by_side_as_far_as_their_settings_let_them(engine, prompts, settings, n):
    assert n_side_by_side([Row(engine, prompts[0], how(**one)) for one in settings], 1000) == n


def test_padding_counts_among_the_columns(engine, prompts):
    rows = [Row(engine, prompts[0], how(max_new_tokens=50)), Row(engine, [torch.arange(3, 90)], how(max_new_tokens=4))]
    assert [n_side_by_side(rows, 87 + 50 + more) for more in (0, -1)] == [2, 1]


def test_errors_of_hooks_end_their_row_alone(engine, prompts):
    bad = Row(engine, prompts[0], how(), lambda token: {}[token])
    late = Row(engine, prompts[0], how(cancelled=lambda: 1 // 0))
    good = Row(engine, prompts[1], how())
    decode_rows(engine, [bad, good, late])
    assert [type(row.error) for row in (bad, good, late)] == [KeyError, type(None), ZeroDivisionError]
    assert len(good.ids) == N
