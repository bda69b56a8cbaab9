"""Decoding into a cache of fixed size gives what decoding into one that grows gives."""

import pytest
import torch
from asking import asking_engine
from plain import random_memory
from transformers.cache_utils import StaticLayer

from ultragist_rag.errors import InputError
from ultragist_rag.memory import static
from ultragist_rag.memory.generate import generate
from ultragist_rag.testing import tiny_engine

counts = hasattr(StaticLayer(1), "cumulative_length")
needs_counts = pytest.mark.skipif(not counts, reason="this transformers cannot go on from a static cache")


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def prompts_of(engine):
    first, second = (random_memory(engine.attachment.model, n, n, lead_token=1) for n in (5, 11))
    return [["the quick brown fox"], [first, " what?"], ["Read: ", first, " and ", second, " then say"], [second, "x"]]


@needs_counts
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "seed": 7}, {"stop": ["a", "o"]}])
def test_static_equals_dynamic(engine, attention, settings):
    engine.attachment.model.set_attn_implementation(attention)
    prompts = prompts_of(engine)
    for pieces in (*prompts, prompts, *reversed(prompts)):
        answers = [
            generate(engine, pieces, max_new_tokens=8, cache_implementation=kind, **settings)
            for kind in ("dynamic", "static", "static")
        ]
        assert answers[0] == answers[1] == answers[2]
    engine.attachment.model.set_attn_implementation("sdpa")


@needs_counts
def test_a_cache_is_used_again_while_rows_and_length_fit():
    model = tiny_engine().model
    cache = static.static_cache(model, 1, 40)
    assert cache.layers[0].max_cache_len == 256
    assert static.static_cache(model, 1, 256) is cache
    assert static.static_cache(model, 1, 257).layers[0].max_cache_len == 512
    assert static.static_cache(model, 1, 256) is not cache
    with torch.inference_mode():
        other = static.static_cache(model, 1, 256)
    assert static.static_cache(model, 1, 256) is not other
    cache = static.static_cache(model, 1, 256)
    model.to(torch.bfloat16)
    assert static.static_cache(model, 1, 256) is not cache


def test_what_static_caches_cannot_do_is_refused(engine, monkeypatch):
    with pytest.raises(InputError, match="'paged'"):
        generate(engine, "x", cache_implementation="paged")
    with pytest.raises(InputError, match="but 3 are decoded"):
        generate(engine, "x", cache_implementation="static", num_beams=3)
    if counts:
        monkeypatch.setattr("ultragist_rag.memory.beginning.takes_any_mask", lambda _: False)
        with pytest.raises(InputError, match="attn_implementation"):
            generate(engine, "x", cache_implementation="static")
    monkeypatch.setattr(static, "StaticLayer", lambda _: object())
    with pytest.raises(InputError, match="Upgrade transformers"):
        generate(engine, "x", cache_implementation="static")
