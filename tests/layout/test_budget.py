"""A budget of slots is divided, never exceeded, and the better document never gets less."""

import itertools
import random

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.layout.budget import plan_ratios, slots_of
from ultragist_rag.layout.planner import flush_reach

WINDOW = 16


def test_slots_are_counted_as_the_windows_of_a_document_are_planned():
    for length, ratio, window in itertools.product(range(1, 60), (1, 2, 3, 8, 40), (1, 5, 16)):
        windows = [min(window, length - start) for start in range(0, length, window)]
        assert slots_of(length, ratio, window) == sum(len(flush_reach(n_tokens, ratio)) for n_tokens in windows)


def random_cases():
    draw = random.Random(7)
    for _ in range(300):
        n_documents = draw.randrange(1, 7)
        lengths = [draw.randrange(1, 90) for _ in range(n_documents)]
        weights = [draw.randrange(1, 50) for _ in range(n_documents)]
        ratios = draw.sample((1, 2, 3, 4, 8, 16, 32), draw.randrange(1, 5))
        least = sum(slots_of(length, max(ratios), WINDOW) for length in lengths)
        yield lengths, least + draw.randrange(0, 120), ratios, weights


def test_the_budget_holds_and_no_document_could_have_had_more():
    for case in random_cases():
        check(*case)


def check(lengths, slots, ratios, weights):
    plan = plan_ratios(lengths, slots, ratios, WINDOW, weights)
    sizes = [slots_of(length, ratio, WINDOW) for length, ratio in zip(lengths, plan, strict=True)]
    assert sum(sizes) <= slots
    assert set(plan) <= set(ratios)
    for length, ratio, size in zip(lengths, plan, sizes, strict=True):
        better = [other for other in ratios if other < ratio]
        assert not better or sum(sizes) - size + slots_of(length, max(better), WINDOW) > slots
    assert plan_ratios(lengths, slots, ratios[::-1], WINDOW, [3 * weight for weight in weights]) == plan


def test_of_equal_documents_the_heavier_never_gets_fewer_slots():
    for slots, weights in itertools.product(range(16, 129, 3), ([4, 3, 2, 1], [9, 1, 1, 1], [2, 2, 2, 2])):
        plan = plan_ratios([32] * 4, slots, (1, 2, 4, 8), WINDOW, weights)
        assert plan == sorted(plan)


def test_slots_follow_the_weights():
    assert plan_ratios([64, 64], 40, (2, 4, 8, 16), 64, [4, 1]) == [2, 8]
    assert plan_ratios([64, 64], 40, (2, 4, 8, 16), 64, [1, 4]) == [8, 2]
    assert plan_ratios([64, 64], 40, (2, 4, 8, 16), 64, [1, 1]) == [4, 4]


def test_what_cannot_fit_is_refused_with_the_least_that_would():
    with pytest.raises(InputError, match=r"at least 15 slots at ratio 8.*budget is 14"):
        plan_ratios([64, 49], 14, (2, 8), 64, [1, 1])
    assert plan_ratios([64, 49], 15, (2, 8), 64, [1, 1]) == [8, 8]
    with pytest.raises(InputError, match=r"at least 17 slots.*2 of them"):
        plan_ratios([64, 49], 16, (2, 8), 64, [1, 1], taken=2)
    assert plan_ratios([], 0, (4,), 64, []) == []


@pytest.mark.parametrize(
    ("ratios", "weights", "match"), [((), [1], "ratio"), ((0,), [1], "ratio"), ((2,), [0], "weight"), ((2,), [], "0 w")]
)
def test_arguments_that_do_not_fit_are_refused(ratios, weights, match):
    with pytest.raises(InputError, match=match):
        plan_ratios([5], 9, ratios, 4, weights)
