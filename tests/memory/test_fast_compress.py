"""Every fast path of compressing gives what the plain way gives."""

import sys
from pathlib import Path

import pytest
import torch

from ultragist_rag import UltraGist, fast
from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.memory import windows
from ultragist_rag.memory.compress import Verbatim, compress_ids
from ultragist_rag.modeling import selftest, split
from ultragist_rag.testing import FAMILIES, tiny_engine, tiny_model

sys.path.insert(0, str(Path(__file__).parents[1]))
import architectures

LEAD = 1
SWITCHES = sorted({"kept-rows", "split-attention"})


def ids(n, seed=0):
    return torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch):
    """Whether each fast forward split its attention."""
    seen = []
    real = windows.encode_kept

    def noted(*args, visible, **kwargs):
        seen.append(isinstance(visible, split.Split))
        return real(*args, visible=visible, **kwargs)

    monkeypatch.setattr(windows, "encode_kept", noted)
    return seen


def both_ways(monkeypatch, engine, documents, plain="all", **settings):
    made = []
    for value in (plain, ""):
        monkeypatch.setenv(fast.VARIABLE, value)
        with torch.no_grad():
            made.append(compress_ids(engine.attachment, documents, **settings))
    return zip(*made, strict=True)


def assert_equal(pairs):
    for plain, quick in pairs:
        assert plain.segments == quick.segments
        assert plain.progress == quick.progress
        for mine, other in zip((*plain.keys, *plain.values), (*quick.keys, *quick.values), strict=True):
            torch.testing.assert_close(other, mine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "layers"), [("llama", 1), ("llama", 2), *((family, 3) for family in FAMILIES)])
@pytest.mark.parametrize("settings", architectures.KV)
def test_fast_equals_plain(monkeypatch, calls, family, settings, layers):
    engine = tiny_engine(family, model={"num_hidden_layers": layers}, **settings)
    documents = [ids(n, seed=n) for n in (5, 21, 8, 16)]
    assert_equal(both_ways(monkeypatch, engine, documents, ratio=4, lead_token=LEAD))
    assert calls
    assert any(calls) == (settings.get("placement") != "interleave")


@pytest.mark.parametrize("plain", SWITCHES)
def test_each_fast_path_alone_equals_the_other(monkeypatch, plain):
    engine = tiny_engine()
    assert_equal(both_ways(monkeypatch, engine, [ids(21), ids(7)], plain, ratio=4, lead_token=LEAD))


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("projections", ["kv", "qkvo"])
def test_fast_equals_plain_for_low_ranks_and_some_projections(monkeypatch, calls, rank, projections):
    engine = tiny_engine(rank=rank, projections=projections)
    assert_equal(both_ways(monkeypatch, engine, [ids(20)], ratio=4))
    assert calls == [True, True, True]


def test_fast_equals_plain_for_streams_with_a_sink(monkeypatch, calls):
    engine = tiny_engine(sink=2, window=16)
    assert_equal(both_ways(monkeypatch, engine, [ids(40)], ratio=4, joint=True))
    assert calls


def test_fast_equals_plain_with_different_pasts(monkeypatch, calls):
    """Memories of different lengths in front need the whole mask."""
    engine = tiny_engine()
    assert_equal(both_ways(monkeypatch, engine, [ids(24), ids(24, 1)], ratio=[4, 8], lead_token=LEAD))
    assert set(calls) == {True, False}


def test_fast_equals_plain_where_strides_overlap(monkeypatch, calls):
    engine = tiny_engine(window=16, stride=8)
    assert_equal(both_ways(monkeypatch, engine, [ids(40), ids(13)], ratio=4, lead_token=LEAD))
    assert calls


def test_fast_equals_plain_with_verbatim_tokens(monkeypatch, calls):
    engine = tiny_engine(window=16)
    documents = [ids(40), ids(11, 1)]
    flags = [torch.rand(len(one), generator=torch.Generator().manual_seed(2)).numpy() < 0.2 for one in documents]
    verbatim = Verbatim("some", flags)
    assert_equal(both_ways(monkeypatch, engine, documents, ratio=8, lead_token=LEAD, verbatim=verbatim))
    assert calls


def test_fast_equals_plain_when_going_on(monkeypatch, calls):
    engine = tiny_engine()
    with torch.no_grad():
        first = compress_ids(engine.attachment, [ids(11)], ratio=4, lead_token=LEAD)
    assert_equal(both_ways(monkeypatch, engine, [ids(15, 1)], ratio=4, lead_token=LEAD, memories=first))
    assert calls


def test_training_takes_the_plain_way(calls):
    engine = tiny_engine()
    memory = compress_ids(engine.attachment, [ids(8)], ratio=4)[0]
    assert memory.keys[-1].requires_grad
    assert not calls


def test_a_model_whose_layers_are_called_otherwise_takes_the_plain_way(monkeypatch):
    engine = tiny_engine()
    assert engine.attachment.runs_kept

    def refuse(*_args, **_kwargs):
        raise TypeError("an argument is missing")

    monkeypatch.setattr("ultragist_rag.modeling.kept.encode_kept", refuse)
    assert not selftest.can_run_kept(engine.attachment)


def test_a_model_that_gives_something_else_takes_the_plain_way(monkeypatch):
    engine = tiny_engine()
    from ultragist_rag.modeling import kept

    real = kept.encode_kept
    monkeypatch.setattr(kept, "encode_kept", lambda *a, **k: tuple([x + 1e-3 for x in part] for part in real(*a, **k)))
    assert not selftest.can_run_kept(engine.attachment)


def test_eager_attention_takes_the_plain_way(monkeypatch, calls):
    engine = tiny_engine(model={"attn_implementation": "eager"})
    assert not engine.attachment.runs_kept
    assert_equal(both_ways(monkeypatch, engine, [ids(20)], ratio=4))
    assert not calls


def test_unknown_names_of_fast_paths_are_refused(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "kept-rows,warp")
    with pytest.raises(InputError, match="warp"):
        fast.is_fast("kept-rows")


def test_a_gist_that_is_kept_as_a_sink_too_counts_once(monkeypatch, calls):
    engine = tiny_engine(sink=2, window=16, placement="interleave", attention="full-coverage")
    assert_equal(both_ways(monkeypatch, engine, [ids(40)], ratio=[[1, 4]], joint=True))
    engine = tiny_engine(sink=3, window=16, placement="interleave", attention="full-coverage")
    assert_equal(both_ways(monkeypatch, engine, [ids(40)], ratio=2, joint=True))
    assert calls


@pytest.mark.parametrize("plain", ["", "all"])
def test_an_interrupt_leaves_nothing_behind(monkeypatch, plain):
    """Torch calls no hook after an error that is not an Exception."""
    monkeypatch.setenv(fast.VARIABLE, plain)
    engine = tiny_engine()
    expected = engine.compress(ids(20)[None])

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = engine.model.model.layers[0].self_attn.v_proj.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.compress(ids(20)[None])
    handle.remove()
    assert not any(layer._forward_hooks for layer in engine.model.modules() if isinstance(layer, torch.nn.Linear))
    assert engine.attachment._embedding_window is None
    assert_equal([(expected, engine.compress(ids(20)[None]))])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("plain", ["split-attention", "all"])
def test_compiled_layers_give_the_same(monkeypatch, plain):
    monkeypatch.setenv(fast.VARIABLE, plain)
    engine = tiny_engine()
    expected = engine.compress(ids(20)[None])
    for layer in engine.model.model.layers:
        layer.compile(backend="eager")
    engine.generate([expected, ids(4)[None]], max_new_tokens=2)
    assert_equal([(expected, engine.compress(ids(20)[None]))])


@pytest.mark.parametrize("first", [True, False])
def test_hooks_of_others_count_either_way(monkeypatch, first):
    """What they give is what is kept, whether they were there before the gist modules or came later."""
    model = tiny_model()
    layers = [layer.self_attn for layer in model.model.layers]
    engine = None if first else UltraGist.attach(model, None, GistConfig(window=16))
    for layer in layers:
        layer.v_proj.register_forward_hook(lambda _module, _args, output: output * 1.5)
    engine = engine or UltraGist.attach(model, None, GistConfig(window=16))
    document = ids(40)
    verbatim = Verbatim("some", [document.numpy() % 5 == 0])
    assert_equal(both_ways(monkeypatch, engine, [document], ratio=8, verbatim=verbatim))
