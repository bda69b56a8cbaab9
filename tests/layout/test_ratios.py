import numpy as np
import pytest

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ConfigError, InputError
from ultragist_rag.layout.ratios import RatioState, adapted_ratio, choose_ratio, usable_ratios

RATIOS = (2, 4, 8, 16, 32)


def draw(config, n, seed=42, **changes):
    generator, state, drawn = np.random.default_rng(seed), RatioState(), []
    for _ in range(n):
        settings = {"allow_zero": True, "n_tokens": 300, "n_positions": 256, **changes}
        ratio, state = choose_ratio(config, state, generator=generator, **settings)
        drawn.append(ratio)
    return drawn


def config(policy, ratios=RATIOS, **settings):
    return GistConfig(window=64, ratios=ratios, ratio_policy=policy, **settings)


def test_random_draws_are_the_authors_for_their_seed():
    recorded = [2, 16, 16, 8, 8, 32, 2, 16, 4, 2, 8, 32, 16, 16, 16, 16, 8, 2, 32, 8]
    assert draw(config("step-random"), 20) == recorded
    assert draw(config("instance-random"), 5) == [2] * 5


def test_sequence_cycles_through_the_ratios_that_divide_the_stride():
    assert draw(config("sequence", (2, 3, 128, 0, 4)), 7) == [2, 0, 4, 2, 0, 4, 2]
    assert draw(config("sequence", (2, 0, 4)), 4, allow_zero=False) == [2, 4, 2, 4]


def test_the_list_of_a_sequence_is_made_once():
    _, state = choose_ratio(
        config("sequence", (0, 2)), RatioState(), allow_zero=True, n_tokens=1, n_positions=9, generator=None
    )
    ratio, _ = choose_ratio(
        config("sequence", (0, 2)), state, allow_zero=False, n_tokens=1, n_positions=9, generator=None
    )
    assert (state.choices, ratio) == ((0, 2), 2)


@pytest.mark.parametrize(("needed", "expected"), [(256, 0), (257, 2), (448, 2), (449, 4), (1324, 8), (99999, 32)])
def test_adapt_takes_the_smallest_ratio_that_suffices(needed, expected):
    assert adapted_ratio((0, *RATIOS), needed, n_positions=256, window=64) == expected


def test_adapt_holds_on():
    settings = config("adapt", adapt_tokens=1024)
    assert draw(settings, 2) == [8, 8]
    ratio, _ = choose_ratio(
        settings, RatioState(open=8), allow_zero=True, n_tokens=9999, n_positions=256, generator=None
    )
    assert ratio == 8


def test_one_ratio_is_taken_as_it_is_and_join_takes_the_first_that_divides_the_stride():
    assert draw(config("step-random", (24,)), 2) == [24, 24]
    assert draw(config("join", (24, 8, 2)), 2) == [8, 8]


def test_randomness_needs_a_seed():
    with pytest.raises(InputError, match="seed"):
        choose_ratio(config("step-random"), RatioState(), allow_zero=True, n_tokens=1, n_positions=9, generator=None)


def test_no_ratio_left_is_an_error():
    with pytest.raises(ConfigError, match="none of the ratios"):
        usable_ratios(config("sequence", (0, 24)), allow_zero=False)
