"""A document's own windows: verbatim slots in reading order, and ratios that fit a budget."""

import itertools

import numpy as np
import pytest

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.layout.course import Course, count_slots, fitting_ratio, keep_verbatim
from ultragist_rag.layout.planner import append_step, even_reach
from ultragist_rag.layout.slots import GIST, RAW, SINK, VERBATIM, SlotTable

SETTINGS = [{}, {"stride": 3}, {"sink": 2}, {"placement": "interleave"}]
CHOICES = [[], [0], [3, 4, 7, 8, 15], list(range(17))]


def course(n_tokens, ratio, chosen=()):
    return Course(SlotTable.empty(), 0, 0, n_tokens, [ratio], np.array(chosen, np.int64))


def walk(config, one, flush):
    while not one.done:
        one.advance(config, flush)
    return one.table


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("chosen", "flush", "ratio"), list(itertools.product(CHOICES, (True, False), (1, 3, 8))))
def test_chosen_tokens_stay_once_before_the_gist_that_covers_them(settings, chosen, flush, ratio):
    config = GistConfig(window=8, **settings)
    plain, mixed = walk(config, course(17, ratio), flush), walk(config, course(17, ratio, chosen), flush)
    rest = mixed.take(np.flatnonzero(mixed.kind != VERBATIM))
    for name in ("kind", "start", "stop", "ratio"):
        assert getattr(rest, name).tolist() == getattr(plain, name).tolist()
    elsewhere = mixed.start[(mixed.kind == RAW) | (mixed.kind == SINK)].tolist()
    assert mixed.start[mixed.kind == VERBATIM].tolist() == [token for token in chosen if token not in elsewhere]
    condensed = mixed.take(np.flatnonzero(np.isin(mixed.kind, (GIST, VERBATIM))))
    keys = list(zip(condensed.stop, condensed.kind == GIST, strict=True))
    assert keys == sorted(keys)


def test_an_open_window_and_ratio_zero_keep_everything_anyway():
    for reach, n_condensed in ((even_reach(8, 0), None), (even_reach(4, 0), 4)):
        step = append_step(GistConfig(window=4), SlotTable.empty(), 0, (0, 4), reach, n_condensed)
        assert keep_verbatim(step, np.arange(4)) is step


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("n_tokens", "flush"), list(itertools.product((1, 7, 8, 30), (True, False))))
def test_the_ratio_is_the_lowest_that_fits(settings, n_tokens, flush):
    config = GistConfig(window=8, **settings)
    one = course(n_tokens, 2, [0, 5, 6, 20] if n_tokens > 20 else [0])
    sizes = [count_slots(config, one, ratio, flush) for ratio in range(2, 9)]
    assert sizes == sorted(sizes, reverse=True)
    for slots in range(sizes[-1], sizes[0] + 2):
        ratio = fitting_ratio(config, one, slots, flush)
        assert count_slots(config, one, ratio, flush) <= slots
        assert ratio == 2 or count_slots(config, one, ratio - 1, flush) > slots
    with pytest.raises(InputError, match=f"at least {sizes[-1]} slots"):
        fitting_ratio(config, one, sizes[-1] - 1, flush)
    assert (one.end, len(one.table)) == (0, 0)


def test_a_budget_chooses_one_ratio_for_all_windows():
    one = Course(SlotTable.empty(), 0, 0, 9, [2, 4])
    with pytest.raises(InputError, match="one ratio for all windows"):
        fitting_ratio(GistConfig(window=8), one, 9, True)
