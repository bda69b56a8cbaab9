import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import config as shape_checks

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.layout.slots import GIST, RAW, SINK, VERBATIM, SlotTable
from ultragist_rag.memory.memory import GistMemory, Progress, Segment
from ultragist_rag.memory.packing import pack
from ultragist_rag.memory.segments import segments_of, table_of

SEGMENTS = (
    Segment("sink", 0, 1, 0, 1),
    Segment("gist", 1, 3, 0, 8, 4),
    Segment("verbatim", 3, 5, 8, 10),
    Segment("raw", 5, 6, 10, 11),
)


def memory(segments=SEGMENTS, slots=6, **settings):
    keys = tuple(torch.full((1, 2, slots, 4), float(layer)) for layer in range(3))
    return GistMemory(keys=keys, values=keys, segments=segments, config=GistConfig(), **settings)


def test_counts_derive_from_segments():
    one = memory()
    assert (one.slots, one.n_sink, one.n_gists, one.n_verbatim, one.n_raw_tail) == (6, 1, 2, 2, 1)
    assert one.n_source_tokens == 11
    assert one.achieved_ratio == 11 / 6
    assert one.nbytes == 3 * 2 * 2 * 6 * 4 * 4
    assert one.to(torch.bfloat16).nbytes == one.nbytes // 2
    assert one.to(torch.bfloat16).dtype == torch.bfloat16
    assert "n_gists=2" in repr(one)


@pytest.mark.parametrize(
    "segments", [SEGMENTS[:3], SEGMENTS[1:], (*SEGMENTS[:2], SEGMENTS[3]), (Segment("gist", 0, 0, 0, 0),)]
)
def test_segments_cover_all_slots_side_by_side(segments):
    with pytest.raises(InputError):
        memory(segments)


def test_layers_must_agree(monkeypatch):
    monkeypatch.setattr(shape_checks, "jaxtyping_disable", True)
    good = memory()
    with pytest.raises(InputError, match="every layer"):
        GistMemory(
            keys=good.keys, values=(*good.values[:2], good.values[2][:, :, :5]), segments=SEGMENTS, config=GistConfig()
        )
    with pytest.raises(InputError, match="as many"):
        GistMemory(keys=good.keys, values=good.values[:2], segments=SEGMENTS, config=GistConfig())


def test_sealing_closes_the_open_window():
    progress = Progress(tokens=11, window_start=8, open_ids=(1, 2, 3), n_provisional=1, interleave_phase=3)
    one = memory(progress=progress)
    sealed = one.seal()
    assert (one.n_provisional, sealed.n_provisional) == (1, 0)
    assert sealed.progress == Progress(tokens=11, window_start=11)
    assert one.progress == progress
    assert memory().seal().progress is None


def test_progress_goes_through_json():
    progress = Progress(11, 8, 3, 4, 2, (1, 2), 1, (2, 4))
    assert Progress.from_dict(progress.to_dict()) == progress


def test_detaching_cuts_the_history():
    one = memory()
    grown = GistMemory(
        keys=tuple(k.requires_grad_() * 2 for k in one.keys), values=one.values, segments=SEGMENTS, config=GistConfig()
    )
    assert grown.keys[0].requires_grad
    assert not grown.detach().keys[0].requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_lie_in_one_piece_too(copied):
    made = memory()
    for one in (made, replace(made, **pack(made.keys, made.values))):
        other = copied(one)
        assert (other.packed is None) == (one.packed is None)
        assert other.packed is None or other.packed.data_ptr() == other.keys[0].data_ptr()
        assert (other.segments, other.progress, other.config) == (one.segments, one.progress, one.config)
        for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
            assert torch.equal(mine, theirs)
            assert mine.data_ptr() != theirs.data_ptr()
    large = replace(made, **pack(made.keys * 20, made.values * 20))
    assert len(pickle.dumps(large)) < 1.5 * large.nbytes + 8000


def test_the_table_of_the_segments_is_the_table():
    gists = SlotTable.gists(0, np.array([4, 8, 10]), 4).join(SlotTable.gists(10, np.array([4, 8]), 4))
    table = SlotTable.tokens(0, 2).as_kind(SINK).join(gists).join(SlotTable.gists(18, np.array([2, 4]), 2))
    table = table.join(SlotTable.tokens(22, 24).as_kind(VERBATIM)).join(SlotTable.tokens(24, 27))
    segments = segments_of(table)
    kinds = [segment.kind for segment in segments]
    assert kinds == ["sink", "gist", "gist", "gist", "verbatim", "raw"]
    back = table_of(segments)
    for name in ("kind", "start", "stop", "ratio"):
        assert getattr(back, name).tolist() == getattr(table, name).tolist()
    assert segments_of(SlotTable.empty()) == ()
    assert {GIST, RAW} <= set(back.kind.tolist())
