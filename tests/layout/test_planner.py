import itertools

import numpy as np
import pytest

from ultragist_rag.config import GistConfig
from ultragist_rag.layout.planner import append_step, even_reach, flush_reach, interleave_step, interleaved_rows
from ultragist_rag.layout.slots import GIST, RAW, SINK, VERBATIM, SlotTable

EVERY_LENGTH_AND_RATIO_UP_TO_9 = list(itertools.product(range(1, 10), range(1, 10)))
ATTENTIONS = ("step-expansion", "full-coverage", "segmentation")


@pytest.mark.parametrize(("n", "ratio"), EVERY_LENGTH_AND_RATIO_UP_TO_9)
def test_every_token_of_a_flushed_window_is_condensed_by_exactly_one_gist(n, ratio):
    reach = flush_reach(n, ratio)
    lengths = np.diff(reach, prepend=0)
    assert len(reach) == -(-n // ratio)
    assert reach[-1] == n
    assert (lengths[:-1] == ratio).all()
    assert 1 <= lengths[-1] <= ratio


@pytest.mark.parametrize(("stride", "ratio"), EVERY_LENGTH_AND_RATIO_UP_TO_9)
def test_the_authors_gists_are_spread_evenly_or_leave_a_rest(stride, ratio):
    even, uneven = even_reach(stride, ratio), even_reach(stride, ratio, spread=False)
    assert len(even) == len(uneven) == stride // ratio
    assert uneven.tolist() == [ratio * (j + 1) for j in range(stride // ratio)]
    if len(even):
        assert len(set(np.diff(even, prepend=0))) == 1
        assert stride - len(even) < even[-1] <= stride
    if stride % ratio == 0:
        assert even.tolist() == uneven.tolist()


def sees(step, row):
    """What a row sees of the window, spelled out: raw tokens and gists by number."""
    s = step.spans
    return set(range(s.raw_from[row], s.raw_to[row])), set(range(s.gist_from[row], s.gist_to[row]))


@pytest.mark.parametrize(("attention", "previous"), list(itertools.product(ATTENTIONS, (True, False))))
@pytest.mark.parametrize(("n_cached", "n_new", "n_closed"), [(0, 8, 0), (0, 8, 5), (3, 5, 2), (8, 0, 4)])
def test_appended_gists_see_what_their_attention_says(attention, previous, n_cached, n_new, n_closed):
    config = GistConfig(window=8, ratio=3, attention=attention, attend_previous=previous)
    past = SlotTable.gists(0, 2 * np.arange(1, n_closed + 1), 2).join(SlotTable.tokens(20, 20 + n_cached))
    tokens = (20 + n_cached, 20 + n_cached + n_new)
    step = append_step(config, past, n_closed, tokens, np.array([3, 6, 8]), 8)
    for i in range(n_new):
        assert sees(step, i) == (set(range(n_cached + i + 1)), set())
        assert step.positions[i] == n_closed + n_cached + i
    for j, (start, stop) in enumerate([(0, 3), (3, 6), (6, 8)]):
        row = n_new + j
        expected = {
            "step-expansion": (set(range(stop)), set(range(j + 1)) if previous else {j}, stop + (j if previous else 0)),
            "full-coverage": (set(range(8)), set(range(j + 1)), 8 + j),
            "segmentation": (set(range(start, stop)), {j}, stop),
        }[attention]
        assert (*sees(step, row), int(step.positions[row]) - n_closed) == expected


@pytest.mark.parametrize(("stride", "sink", "n_closed"), list(itertools.product((3, 8), (0, 2), (0, 4))))
def test_a_closed_window_leaves_sink_once_gists_and_the_newest_raw_tokens(stride, sink, n_closed):
    config = GistConfig(window=8, stride=stride, ratio=3, sink=sink)
    past = SlotTable.gists(0, np.arange(1, n_closed + 1), 1)
    step = append_step(config, past, n_closed, (n_closed, n_closed + 8), flush_reach(stride, 3), stride)
    n_gists, n_sink = -(-stride // 3), 0 if n_closed else sink
    assert step.after.kind.tolist() == [SINK] * n_sink + [GIST] * (n_closed + n_gists) + [RAW] * (8 - stride)
    gists = n_closed + 8 + np.arange(n_gists)
    kept = [*range(n_sink), *range(n_closed), *gists, *range(n_closed + stride, n_closed + 8)]
    assert step.keep.tolist() == kept
    everything = past.join(step.rows)
    assert step.after.start.tolist() == everything.take(step.keep).start.tolist()


def test_ratio_zero_keeps_the_window_and_a_sink_twice():
    step = append_step(GistConfig(window=4, sink=1), SlotTable.empty(), 0, (0, 4), even_reach(4, 0), 4)
    assert step.keep.tolist() == [0, 0, 1, 2, 3]
    assert step.after.kind.tolist() == [SINK, *[VERBATIM] * 4]


def test_an_open_window_keeps_everything():
    past = SlotTable.gists(0, np.array([4]), 4)
    step = append_step(GistConfig(window=8), past, 1, (4, 7), even_reach(8, 0), None)
    assert step.keep.tolist() == [0, 1, 2, 3]
    assert step.after.kind.tolist() == [GIST, RAW, RAW, RAW]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("n_cached_tokens", [0, 3])
def test_interleaved_rows_see_and_stand_as_their_attention_says(attention, n_cached_tokens):
    config = GistConfig(window=6, placement="interleave", attention=attention)
    behind = np.array([False, True, False, False, True, True])  # gists behind tokens 1, 4 and 5
    back = np.array([1, 2, 1, 2, 3, 1])
    whole = interleaved_rows((0, 6), behind, back)
    n_cached = n_cached_tokens + int(behind[:n_cached_tokens].sum())
    past = SlotTable.gists(0, np.array([1, 2]), 1).join(whole.take(np.arange(n_cached)))
    rows = interleaved_rows((n_cached_tokens, 6), behind[n_cached_tokens:], back[n_cached_tokens:])
    step = interleave_step(config, past, 2, rows, True)
    raw_before, gists_before = 0, 0
    for place, kind in enumerate(whole.kind):
        is_gist = kind == GIST
        raw_before, gists_before = raw_before + (not is_gist), gists_before + is_gist
        position = 2 + (place if attention == "full-coverage" else raw_before - (not is_gist))
        if place < n_cached:
            assert step.past_positions[2 + place] == position
            continue
        first = raw_before - (whole.stop - whole.start)[place] if is_gist and attention == "segmentation" else 0
        gists = range(gists_before) if attention == "full-coverage" else range(gists_before - is_gist, gists_before)
        assert sees(step, place - n_cached) == (set(range(first, raw_before)), set(gists))
        assert step.positions[place - n_cached] == position
    assert step.after.kind.tolist() == [GIST] * 5
    assert step.after.stop.tolist() == [1, 2, 2, 5, 6]
