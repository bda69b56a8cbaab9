"""What `forward` does otherwise than the authors' code, one test for each row of the table in docs/fidelity.md."""

from dataclasses import replace

import pytest
import torch

from ultragist_rag.errors import ContextOverflowError, InputError, MemoryMismatchError
from ultragist_rag.testing import randomise, tiny_engine

IDS = torch.randint(3, 100, (1, 29), generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
INTERLEAVE = {"placement": "interleave", "attention": "full-coverage"}


def engine(**settings):
    return tiny_engine(model={**SMALL, **settings.pop("model", {})}, **settings)


def feed(engine, *cuts, ids=IDS):
    """Feed ids in parts; return all logits and the memory."""
    memory, logits = None, []
    for start, stop in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        out = engine.forward(ids[:, start:stop], memory=memory)
        memory = out.memory
        logits.append(out.logits)
    return torch.cat(logits, 1), memory


def same(mine, other):
    assert mine[1].segments == other[1].segments
    assert mine[1].progress == other[1].progress
    for a, b in zip(
        (mine[0], *mine[1].keys, *mine[1].values), (other[0], *other[1].keys, *other[1].values), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"sink": 2}, {"sink": 2, **INTERLEAVE}, {"sink": 1, "stride": 4}], ids=str)
def test_the_sink_does_not_depend_on_how_a_text_is_cut(settings):
    one = engine(**settings)
    whole = feed(one)
    for cuts in ((3,), (5, 6, 7), (8,), (13, 20), tuple(range(1, 29))):
        same(feed(one, *cuts), whole)


def test_a_text_shorter_than_the_window_is_read_as_by_the_plain_model_even_with_a_sink():
    one = engine(sink=2)
    logits, memory = feed(one, 3, 4, 5, ids=IDS[:, :7])
    torch.testing.assert_close(logits, one.model(IDS[:, :7]).logits, atol=1e-5, rtol=0)
    assert memory.n_sink == 0


def test_an_interleaved_sink_is_of_the_first_tokens_not_of_the_newest():
    _, memory = feed(engine(sink=1, **INTERLEAVE), *range(1, 29))
    assert memory.segments[0].kind == "sink"
    assert memory.segments[0].source_start == 0


def test_logits_of_all_tokens_are_returned():
    assert engine().forward(IDS).logits.shape == (1, 29, 100)


def test_raw_tokens_do_not_see_the_gists_of_their_window_under_interleaved_step_expansion():
    one = engine(placement="interleave", attention="step-expansion")
    same(feed(one, 2, 7, 11, 26), feed(one))
    first = one.forward(IDS[:, :8]).logits
    torch.testing.assert_close(first, one.model(IDS[:, :8]).logits, atol=1e-5, rtol=0)
    randomise(one.gist_parameters().items(), 7)
    torch.testing.assert_close(one.forward(IDS[:, :8]).logits, first, atol=1e-5, rtol=0)


def test_random_ratios_follow_the_seed_of_the_call_alone():
    one = engine(ratios=(2, 4, 8), ratio_policy="step-random")
    kinds = {seed: one.forward(IDS, seed=seed).memory.segments for seed in range(5)}
    assert len(set(kinds.values())) > 1
    assert all(one.forward(IDS, seed=seed).memory.segments == segments for seed, segments in kinds.items())
    with pytest.raises(InputError, match="seed"):
        one.forward(IDS)
    assert one.forward(IDS[:, :5]).memory.n_raw_tail == 5  # nothing to draw yet


def test_one_draw_holds_for_a_sequence_under_instance_random():
    one = engine(ratios=(2, 4, 8), ratio_policy="instance-random")
    first = one.forward(IDS[:, :9], seed=1)
    both = one.forward(IDS[:, 9:], memory=first.memory)
    ratios = {segment.ratio for segment in both.memory.segments if segment.kind == "gist"}
    assert ratios == {first.memory.progress.open_ratio}


def test_a_segment_gist_knows_nothing_of_the_rest_of_the_window():
    one = engine(attention="segmentation")
    other = IDS.clone()
    other[0, 4:8] += 1  # the second half of the first window (ids stay below 100 by construction of the next line)
    other.clamp_(max=99)
    mine, theirs = (one.forward(ids[:, :8]).memory for ids in (IDS, other))
    for layer in range(
        1
    ):  # in layer 0 rows have seen nothing yet; in layer 1 the first gist has seen tokens 0 to 3 only
        assert torch.equal(mine.keys[layer + 1][:, :, 0], theirs.keys[layer + 1][:, :, 0])
        assert not torch.equal(mine.keys[layer + 1][:, :, 1], theirs.keys[layer + 1][:, :, 1])


def test_a_full_window_is_condensed_at_once_and_in_training_the_last_one_is_not():
    one = engine()
    assert one.forward(IDS[:, :16]).memory.n_raw_tail == 0
    assert one.forward(IDS[:, :16], training=True).memory.n_raw_tail == 8


def test_loss_counts_predictions_across_windows_and_skips_the_first_in_training():
    one, labels = engine(), IDS.clone()
    out = one.forward(IDS, labels=labels)
    plain = torch.nn.functional.cross_entropy(out.logits[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(out.loss, plain)
    assert out.n_valid_tokens == 28
    trained = one.forward(IDS, labels=labels, training=True)
    plain = torch.nn.functional.cross_entropy(trained.logits[0, 8:-1], IDS[0, 9:])
    torch.testing.assert_close(trained.loss, plain)
    assert trained.n_valid_tokens == 20
    assert engine(**INTERLEAVE).forward(IDS, labels=labels, training=True).n_valid_tokens == 28
    labels[:, :20] = -100
    assert one.forward(IDS, labels=labels).n_valid_tokens == 9
    assert one.forward(IDS[:, :5], labels=labels[:, :5], training=True).loss.isnan()


@pytest.mark.parametrize("settings", [{}, INTERLEAVE], ids=str)
def test_sequences_of_ratios_go_on_over_calls(settings):
    one = engine(ratios=(2, 4, 8), ratio_policy="sequence", **settings)
    same(feed(one, 3, 10, 17, 24), feed(one))


def test_adapted_ratios_know_the_tokens_so_far_and_hold_on():
    one = engine(ratios=(2, 4), ratio_policy="adapt", adapt_positions=16, adapt_tokens=0)
    assert {s.ratio for s in one.forward(IDS[:, :16]).memory.segments} == {2}
    assert {s.ratio for s in one.forward(IDS[:, :24]).memory.segments} == {2}
    assert {s.ratio for s in one.forward(IDS[:, :25]).memory.segments if s.ratio} == {4}


def test_gradients_are_recorded_in_training_only():
    one = engine()
    assert not one.forward(IDS).logits.requires_grad
    assert one.forward(IDS, training=True).memory.keys[0].requires_grad
    with torch.no_grad():
        assert not one.forward(IDS, training=True).logits.requires_grad


def test_what_does_not_fit_is_refused():
    one = engine(model={"max_position_embeddings": 16})
    for ids in (IDS[:, :0], IDS[0], IDS.expand(2, -1)):
        with pytest.raises(InputError, match="input_ids has shape"):
            one.forward(ids)
    with pytest.raises(InputError, match="between 3 and 100"):
        one.forward(torch.tensor([[3, 100]]))
    with pytest.raises(InputError, match="labels has shape"):
        one.forward(IDS, labels=IDS[:, 1:])
    with pytest.raises(ContextOverflowError, match="need 18 positions"):
        one.forward(torch.cat((IDS, IDS), 1))
    memory = one.compress(IDS[:, :5])
    with pytest.raises(MemoryMismatchError, match="token by token"):
        one.forward(IDS[:, :3], memory=memory)
    one.forward(IDS[:, :3], memory=memory.seal())
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        one.forward(IDS[:, :3], memory=replace(memory.seal(), fingerprint="other"))
