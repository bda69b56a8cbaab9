"""Every fast path of asking gives what the plain way gives."""

import pytest
import torch
from asking import asking_engine
from plain import random_memory

from ultragist_rag import fast
from ultragist_rag.errors import InputError
from ultragist_rag.memory.assembled import Assembled
from ultragist_rag.memory.assembly import rotated_slots
from ultragist_rag.memory.generate import generate
from ultragist_rag.memory.packing import pack, packed_view
from ultragist_rag.memory.prompt_layout import lay_out
from ultragist_rag.store.codec import decode, encode
from ultragist_rag.testing import tiny_engine

N = 6


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


def packed_memory(model, n, seed):
    from dataclasses import replace

    memory = random_memory(model, n, seed, lead_token=1)
    return replace(memory, **pack(memory.keys, memory.values))


def prompts_of(model, memory_of):
    first, second = memory_of(model, 5, 5), memory_of(model, 11, 11)
    return [
        ["the quick brown fox"],
        [first, " what is it? Answer:"],
        ["Read: ", first, " and ", second, " then say"],
        [second, first, second, "x"],
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("plain", ["one-forward", "one-rotation", "all"])
@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 7, "num_return_sequences": 2}, {"stop": ["a"]}]
)
def test_answers_are_the_same(engine, monkeypatch, attention, plain, settings):
    model = engine.attachment.model
    model.set_attn_implementation(attention)
    batch = prompts_of(model, packed_memory)
    answers = []
    for value in (plain, ""):
        monkeypatch.setenv(fast.VARIABLE, value)
        answers.append([generate(engine, pieces, max_new_tokens=N, **settings) for pieces in (batch, *batch)])
    model.set_attn_implementation("sdpa")
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("plain", "forwards"), [("", N), ("one-forward", N + 1)])
def test_the_first_forward_of_generate_reads_the_whole_prompt(engine, monkeypatch, plain, forwards):
    monkeypatch.setenv(fast.VARIABLE, plain)
    memory = packed_memory(engine.attachment.model, 5, 5)
    lengths = []
    decoder = engine.attachment.decoder
    handle = decoder.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    generate(engine, ["ab", memory, "cdef"], max_new_tokens=N, min_new_tokens=N)
    handle.remove()
    # the lead token, two tokens in front of the memory and four behind it
    assert lengths == ([7] if not plain else [6, 1]) + [1] * (N - 1)
    assert len(lengths) == forwards


@pytest.mark.parametrize("order", [[0, 1], [1, 0], [0, 1, 0], [1]])
def test_keys_rotated_at_once_equal_keys_rotated_layer_by_layer(monkeypatch, order):
    model = tiny_engine().model
    memories = [packed_memory(model, 5, 5), packed_memory(model, 11, 11)]
    for prompts in ([[memories[i] for i in order]], [[memories[i], torch.arange(3)] for i in order]):
        layout = lay_out(prompts, torch.device("cpu"))
        found = []
        for value in ("one-rotation", ""):
            monkeypatch.setenv(fast.VARIABLE, value)
            found.append(rotated_slots(model, layout))
        real = layout.slot_positions >= 0
        for plain, quick in zip(*found, strict=True):
            for mine, other in zip(plain, quick, strict=True):
                assert mine.shape == other.shape
                wide = real[:, None, :, None].expand(mine.shape)
                torch.testing.assert_close(other[wide], mine[wide], atol=0, rtol=0)


def test_made_moved_and_stored_memories_lie_in_one_piece():
    memory = tiny_engine(window=8, ratio=4).compress(torch.arange(3, 23)[None])
    for one in (memory, memory.to(torch.bfloat16), memory.seal(), decode(encode(memory))):
        assert one.packed.shape == (3, 2, 2, 5, 16)
        for layer in range(3):
            assert torch.equal(one.packed[layer, 0][None], one.keys[layer])
            assert torch.equal(one.packed[layer, 1][None], one.values[layer])
    quantised = decode(encode(memory, quantise="int8"))
    assert torch.equal(quantised.packed[1, 1][None], quantised.values[1])


def test_layers_that_lie_apart_or_carry_gradients_are_not_taken_for_one_piece():
    apart = [torch.randn(1, 2, 5, 4) for _ in range(4)]
    assert packed_view(apart[:2], apart[2:]) is None
    made = pack(apart[:2], apart[2:])
    assert packed_view(**made) is not None
    assert packed_view(made["values"], made["keys"]) is None
    assert packed_view([made["keys"][0][:, :, :3]], [made["values"][0][:, :, :3]]) is None
    learning = [part.clone().requires_grad_() for part in apart]
    assert packed_view(**pack(learning[:2], learning[2:])) is None
    assert pack(learning[:2], learning[2:])["keys"][0] is learning[0]


def test_prompts_over_the_same_memories_find_them_assembled(engine, monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "")
    model = engine.attachment.model
    first, second = packed_memory(model, 5, 5), packed_memory(model, 11, 11)
    prompts = [
        ["Read: ", first, second, " what?"],
        ["Read: ", first, second, " who is it?"],
        ["Read: ", second, first, " what?"],
        ["Read it: ", first, second, " what?"],
        ["Read: ", first, second, " what?"],
    ]
    engine.assembled = Assembled()
    expected = [generate(engine, pieces, max_new_tokens=N) for pieces in prompts]
    assert engine.assembled.misses == 0
    engine.assembled = Assembled(2**20)
    assert [generate(engine, pieces, max_new_tokens=N) for pieces in prompts] == expected
    assert (engine.assembled.hits, engine.assembled.misses) == (2, 3)
    assert engine.assembled.nbytes == 3 * (first.nbytes + second.nbytes)
    assert generate(engine, prompts, max_new_tokens=N) == expected
    engine.assembled = Assembled()


def test_assembled_memories_stay_within_their_bytes_and_keep_no_memory_alive(engine, monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "")
    import gc
    import weakref

    model = engine.attachment.model
    memories = [packed_memory(model, 5, seed) for seed in range(4)]
    engine.assembled = Assembled(2 * memories[0].nbytes)
    for memory in (*memories, memories[3], memories[0]):
        generate(engine, [memory, "x"], max_new_tokens=1)
    assert (engine.assembled.hits, engine.assembled.misses) == (1, 5)
    assert engine.assembled.nbytes == 2 * memories[0].nbytes
    gone = weakref.ref(memories.pop())
    del memory
    gc.collect()
    assert gone() is None
    engine.assembled = Assembled(1)
    generate(engine, [memories[0], "x"], max_new_tokens=1)
    assert engine.assembled.nbytes == 0
    engine.assembled = Assembled()


def test_assembled_memories_of_other_batches_and_number_formats_are_not_taken(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "")
    tiny = tiny_engine()
    first, second = (packed_memory(tiny.model, 3, seed) for seed in (1, 2))
    ids = torch.tensor([[7, 8, 9]])
    expected = generate(tiny, [first, second, ids], max_new_tokens=3).tolist()
    tiny.assembled = Assembled(2**20)
    generate(tiny, [[first, ids], [ids, second, ids]], max_new_tokens=3)  # the same slots at the same places
    assert generate(tiny, [first, second, ids], max_new_tokens=3).tolist() == expected
    tiny.model.to(torch.bfloat16)
    assert generate(tiny, [first, second, ids], max_new_tokens=3).shape == (1, 3)
    assert (tiny.assembled.hits, tiny.assembled.misses) == (0, 3)


def test_a_negative_number_of_bytes_for_assembled_memories_is_refused():
    with pytest.raises(InputError, match="max_bytes is -1"):
        Assembled(-1)
