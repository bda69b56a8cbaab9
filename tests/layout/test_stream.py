import itertools

import numpy as np
import pytest

from ultragist_rag.config import GistConfig
from ultragist_rag.layout.slots import GIST, RAW, SlotTable
from ultragist_rag.layout.stream import Cursor, Situation, n_open, next_step

EVERY_VALID_TRIPLE_UP_TO_6 = [(w, s, r) for w, s, r in itertools.product(range(1, 7), repeat=3) if s <= w and r <= s]


def run(config, lengths, training=False):
    """Feed a sequence in parts; return the cursor and all steps."""
    cursor, steps, total = Cursor(), [], 0
    for length in lengths:
        total += length
        while cursor.tokens < total:
            step, cursor = next_step(config, cursor, Situation(total, 256, training))
            steps.append(step)
    return cursor, steps


@pytest.mark.parametrize(("window", "stride", "ratio"), EVERY_VALID_TRIPLE_UP_TO_6)
def test_a_sequence_in_pieces_ends_as_at_once(window, stride, ratio):
    config = GistConfig(window=window, stride=stride, ratio=ratio, sink=1)
    whole, _ = run(config, [19])
    for cut in range(1, 19):
        parts, _ = run(config, [cut, 19 - cut])
        assert parts.window_start == whole.window_start
        for name in ("kind", "start", "stop", "ratio"):
            assert getattr(parts.table, name).tolist() == getattr(whole.table, name).tolist()


@pytest.mark.parametrize(("window", "stride", "ratio"), [t for t in EVERY_VALID_TRIPLE_UP_TO_6 if t[1] % t[2] == 0])
def test_every_token_is_condensed_once_or_left_raw(window, stride, ratio):
    cursor, _ = run(GistConfig(window=window, stride=stride, ratio=ratio), [19])
    covered = [t for a, b in zip(cursor.table.start, cursor.table.stop, strict=True) for t in range(a, b)]
    assert covered == list(range(19))
    raw = cursor.table.start[cursor.table.kind == RAW]
    assert raw.tolist() == list(range(cursor.window_start, 19))
    assert n_open(cursor.table, cursor.window_start) == len(raw)


@pytest.mark.parametrize("ratio", range(1, 8))
@pytest.mark.parametrize("cut", [0, 1, 5, 8, 13])
def test_interleaved_gists_stand_behind_every_ratio_th_token_of_the_sequence(ratio, cut):
    config = GistConfig(window=8, ratio=ratio, placement="interleave", attention="full-coverage")
    cursor, _ = run(config, [cut, 30 - cut] if cut else [30])
    gists = cursor.table.stop[cursor.table.kind == GIST]
    assert gists.tolist() == [t for t in range(1, 31) if t % ratio == 0]
    assert cursor.phase == 30 % ratio
    assert cursor.table.start[cursor.table.kind == RAW].tolist() == list(range(24, 30))


@pytest.mark.parametrize("placement", ["append", "interleave"])
def test_training_leaves_the_last_window_raw(placement):
    config = GistConfig(window=8, ratio=4, placement=placement)
    for n, n_raw in ((16, 8), (17, 1), (8, 8), (3, 3)):
        cursor, steps = run(config, [n], training=True)
        assert (cursor.table.kind == RAW).sum() == n_raw
        assert not steps[-1].is_gist.any()


def test_training_lets_a_sequence_of_ratios_hold_zero_only_if_a_full_window_follows():
    config = GistConfig(window=4, ratios=(0, 4), ratio_policy="sequence")
    _, steps = run(config, [13], training=True)
    assert [int(step.is_gist.sum()) for step in steps] == [0, 1, 0, 0]
    _, steps = run(config, [7], training=True)
    assert [int(step.is_gist.sum()) for step in steps] == [1, 0]


def test_the_sink_is_taken_when_the_first_window_closes_not_before():
    config = GistConfig(window=8, ratio=4, sink=2)
    early, _ = run(config, [5, 1, 1])
    assert (early.table.kind == RAW).all()
    late, _ = run(config, [5, 3, 1])
    assert late.table.start.tolist() == [0, 1, 0, 4, 8]


def test_an_empty_table_has_nothing_open():
    assert n_open(SlotTable.empty(), 0) == 0
    assert n_open(SlotTable.gists(0, np.array([4, 8]), 4), 8) == 0
