"""Streams whose full windows are condensed: how they are cut to fit, and what their tokens score."""

from __future__ import annotations

import pytest
import torch

from ultragist_rag.errors import ContextOverflowError
from ultragist_rag.evaluation.streams import StreamReader
from ultragist_rag.testing import tiny_engine


@pytest.mark.parametrize("settings", [{}, {"stride": 6}, {"sink": 3}, {"placement": "interleave"}])
def test_a_stream_is_scored_as_the_authors_forward_scores_it(settings):
    engine = tiny_engine(window=8, ratio=2, **settings)
    ids = torch.randint(3, 100, (1, 45), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :20] = -100
    out = engine.forward(ids, labels=labels)
    score = StreamReader(engine, ratio=2).score_stream(ids[0].tolist(), 25)
    assert score == pytest.approx(-float(out.loss) * 25, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"stride": 5}, {"sink": 3}])
def test_what_is_read_takes_the_slots_that_are_counted_and_fits_the_room(settings):
    engine = tiny_engine(window=8, ratio=4, **settings)
    reader = StreamReader(engine, ratio=4)
    for n_tokens in (1, 8, 9, 40, 57):
        for room in (3, 12, 30):
            read = reader.read(list(range(3, 3 + n_tokens)), room)
            counted = sum(piece.slots if hasattr(piece, "slots") else len(piece) for piece in read.pieces)
            assert counted == read.slots <= room
            assert read.pieces[-1][-1] == 2 + n_tokens


def test_streams_that_outgrow_the_positions_begin_anew():
    engine = tiny_engine(window=8, ratio=4, model={"max_position_embeddings": 24})
    reader = StreamReader(engine, ratio=4)
    assert reader.longest_stream == 64  # seven windows in 14 gists, the eighth with its two: 24
    assert reader.score_stream(list(range(3, 67)), 60) < 0
    with pytest.raises(ContextOverflowError, match="takes all"):
        reader.score([([3, 4], list(range(3, 30)))])
