import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ultragist_rag.errors import ContextOverflowError, InputError, MemoryMismatchError
from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.testing import FAMILIES, tiny_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
import architectures
import reference

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
LEAD = 1


def ids(n, seed=0):
    return torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(seed))


def engine(family="llama", model=None, **settings):
    return tiny_engine(family, model={**SMALL, **(model or {})}, **settings)


@pytest.fixture(scope="module")
def llama():
    return engine()


def compress(engine, documents, ratio=3, **settings):
    with torch.no_grad():
        return compress_ids(engine.attachment, documents, ratio=ratio, **settings)


def gap(mine, other):
    assert mine.segments == other.segments
    pairs = zip((*mine.keys, *mine.values), (*other.keys, *other.values), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", architectures.KV)
def test_a_batch_equals_the_slow_loop_for_each_document(family, settings):
    one = engine(family, **settings)
    documents = [ids(n, seed=n) for n in (5, 19, 8)]
    slow = reference.Reference(one.model)
    for memory, document, ratio in zip(
        compress(one, documents, [2, 3, 8], lead_token=LEAD), documents, (2, 3, 8), strict=True
    ):
        with torch.no_grad():
            slots = reference.compress(slow, one.config, document.tolist(), ratio, lead=LEAD)
        assert memory.slots == len(slots)
        for layer in range(2):
            for what in ("keys", "values"):
                torch.testing.assert_close(
                    getattr(memory, what)[layer], reference.stack(slots, layer, what), atol=1e-5, rtol=0
                )


def test_gists_that_do_not_see_each_other_equal_the_slow_loop():
    one = engine(attend_previous=False)
    (memory,) = compress(one, [ids(11)], 4)
    with torch.no_grad():
        slots = reference.compress(reference.Reference(one.model), one.config, ids(11).tolist(), 4)
    torch.testing.assert_close(memory.keys[1], reference.stack(slots, 1, "keys"), atol=1e-5, rtol=0)


NO_TAIL = pytest.mark.skip(reason="recurrent memories keep no raw tail")
TAILS = [
    pytest.param(
        case.values[0],
        tail,
        id=f"{case.id}-{tail}",
        marks=NO_TAIL if "memory" in case.values[0] and tail == "raw" else (),
    )
    for case in [
        *architectures.ALL,
        pytest.param({"placement": "interleave"}, id="interleave-step-expansion"),
        pytest.param({"stride": 4}, id="stride"),
        pytest.param({**architectures.ARCHITECTURES["coarse-recurrent"], "stride": 4}, id="recurrent-stride"),
    ]
    for tail in ("flush", "raw")
]


@pytest.mark.parametrize(("settings", "tail"), TAILS)
def test_compressing_a_then_b_equals_compressing_both_for_every_cut(settings, tail):
    one, document = engine(**settings), ids(17)
    (whole,) = compress(one, [document], lead_token=LEAD, tail=tail)
    for cut in range(1, 17):
        first = compress(one, [document[:cut]], lead_token=LEAD, tail=tail)
        (both,) = compress(one, [document[cut:]], lead_token=LEAD, tail=tail, memories=first)
        assert both.progress == whole.progress
        assert gap(both, whole) < 1e-5


def test_going_on_with_nothing_changes_nothing(llama):
    (memory,) = compress(llama, [ids(11)])
    assert compress(llama, [ids(0)], memories=[memory])[0] is memory


@pytest.mark.parametrize("settings", architectures.ALL)
def test_memories_to_go_on_from_are_batched_with_new_documents(settings):
    llama = engine(**settings)
    first = compress(llama, [ids(13), ids(5, 1)])
    more = [ids(9, 2), ids(4, 3), ids(6, 4)]
    batch = compress(llama, more, memories=[*first, None])
    for mine, document, memory in zip(batch, more, [*first, None], strict=True):
        (alone,) = compress(llama, [document], memories=[memory])
        assert gap(mine, alone) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", architectures.ALL)
def test_padding_does_not_leak(settings, attention):
    """A short document beside a long one has whole steps of padding; its memory must be the same alone."""
    one = engine(model={"attn_implementation": attention}, **settings)
    documents = [ids(40), ids(1, 1), ids(8, 2), ids(17, 3)]
    ratios = [[1, 8, 2], [4], [8], [2]]
    for mine, document, ratio in zip(compress(one, documents, ratios), documents, ratios, strict=True):
        assert gap(mine, compress(one, [document], [ratio])[0]) < 1e-5
        assert all(tensor.isfinite().all() for tensor in (*mine.keys, *mine.values))


def test_flushed_gists_are_provisional_until_sealed(llama):
    (memory,) = compress(llama, [ids(21)], 4)
    assert (memory.n_gists, memory.n_provisional, memory.n_raw_tail) == (6, 2, 0)
    assert memory.progress.open_ids == tuple(ids(21)[16:].tolist())
    sealed = memory.seal()
    assert gap(sealed, memory) == 0
    (more,) = compress(llama, [ids(3, 1)], 4, memories=[sealed])
    assert (more.n_gists, more.n_provisional) == (7, 1)
    for layer in range(2):
        assert torch.equal(more.keys[layer][:, :, :6], memory.keys[layer])
    assert [segment.source_stop for segment in more.segments] == [21, 24]


@pytest.mark.parametrize("settings", [{}, {"placement": "interleave"}, {"stride": 4}, {"sink": 2}], ids=str)
def test_joint_with_a_raw_tail_is_the_authors_stream(settings):
    one, document = engine(**settings), ids(21)
    (memory,) = compress(one, [document], 4, joint=True, tail="raw")
    assert gap(memory, one.forward(document[None]).memory) < 1e-5
    assert memory.joint


def test_a_joint_stream_keeps_its_sink_and_a_document_none():
    one = engine(sink=2)
    for cut in (0, 3, 8, 10):
        first = compress(one, [ids(12)[:cut]], 4, joint=True) if cut else None
        (joint,) = compress(one, [ids(12)[cut:]], 4, joint=True, memories=first)
        assert (joint.n_sink, joint.n_gists) == (2, 3)
    assert compress(one, [ids(12)], 4)[0].n_sink == 0


def test_a_raw_tail_can_be_flushed_later(llama):
    first = compress(llama, [ids(13)], 4, tail="raw")
    assert (first[0].n_gists, first[0].n_raw_tail) == (2, 5)
    (both,) = compress(llama, [ids(21)[13:]], 4, memories=first)
    (whole,) = compress(llama, [torch.cat((ids(13), ids(21)[13:]))], 4)
    assert gap(both, whole) < 1e-5


def test_a_lead_token_changes_a_memory_and_is_not_stored(llama):
    (without,), (with_lead,) = compress(llama, [ids(8)], 4), compress(llama, [ids(8)], 4, lead_token=LEAD)
    assert (with_lead.slots, with_lead.lead_token) == (2, LEAD)
    assert gap(without, with_lead) > 1e-3


def test_another_window_is_written_into_the_memory(llama):
    (memory,) = compress(llama, [ids(12)], 4, window=4)
    assert (memory.config.window, memory.config.stride) == (4, 4)
    assert memory.progress.n_provisional == 0


def test_gradients_flow_through_all_windows_and_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        one = engine()
        one.model.train()
        if checkpointing:
            for layer in one.model.model.layers:
                layer.gradient_checkpointing = True
                layer._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
                    f, *a, use_reentrant=False
                )
        (memory,) = compress_ids(one.attachment, [ids(16)], ratio=4)
        last = memory.keys[1][:, :, -1].sum()  # of the second window: depends on the gists of the first
        last.backward()
        found.append(
            {name: value.grad.clone() for name, value in one.model.named_parameters() if value.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    assert "model.layers.0.self_attn.ultragist_v_proj.weight" in found[0]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_bad_arguments_are_refused(llama):
    (memory,) = compress(llama, [ids(5)])
    for settings, words in (
        ({"ratio": 0}, "ratio is 0"),
        ({"ratio": [2, 2]}, "2 ratios for 1 documents"),
        ({"ratio": [[]]}, "ratio is"),
        ({"memories": []}, "0 memories for 1 documents"),
        ({"joint": True, "lead_token": 1}, "joint=True"),
    ):
        with pytest.raises(InputError, match=words):
            compress(llama, [ids(5)], **settings)
    with pytest.raises(InputError, match="empty"):
        compress(llama, [ids(0)])
    for settings in ({"lead_token": 1}, {"joint": True}, {"window": 4}, {"fingerprint": "b"}):
        with pytest.raises(MemoryMismatchError):
            compress(llama, [ids(5)], memories=[replace(memory, fingerprint="a")], **settings)
    with pytest.raises(MemoryMismatchError, match="no progress"):
        compress(llama, [ids(5)], memories=[replace(memory, progress=None)])


def test_a_text_that_needs_more_positions_is_refused_with_the_counts():
    one = engine(model={"max_position_embeddings": 16})
    with pytest.raises(ContextOverflowError, match=r"need 24 positions, but the model has 16"):
        compress(one, [ids(30)], 1)
