"""Quantised memories: as near as their grids allow, as small as they say, in files as strict as all others."""

import random

import pytest
import torch
from safetensors.torch import load

from ultragist_rag.errors import CorruptGistError, InputError
from ultragist_rag.memory.memory import Segment
from ultragist_rag.sizing import BITS, GROUPS, KINDS, tensor_table
from ultragist_rag.store.codec import decode, encode, read_manifest
from ultragist_rag.store.quantise import as_stored, quantisation_report, quantise

SHAPES = [(1, 1, 1), (2, 5, 8), (1, 33, 40), (3, 64, 7), (2, 65, 33), (1, 130, 128)]


def draw(make_memory, shape=(2, 5, 8), seed=0, dtype=torch.float32, layers=2):
    heads, slots, width = shape
    generator = torch.Generator().manual_seed(seed)
    spread, offset = torch.rand(1, heads, 1, width, generator=generator) * 9, torch.randn(1, heads, 1, width) * 20
    tensors = [(torch.randn(1, *shape, generator=generator) * spread + offset).to(dtype) for _ in range(2 * layers)]
    return make_memory(slots=slots, dtype=dtype, keys=tuple(tensors[:layers]), values=tuple(tensors[layers:]))


def slow_quantise(row, kind):
    """One group after the other, one number after the other: what `quantise` and `restore` make of numbers in a row."""
    groups = -(-len(row) // GROUPS[kind])
    size = -(-len(row) // groups)
    levels = 2 ** BITS[kind] - 1
    restored = []
    for start in range(0, len(row), size):
        part = row[start : start + size]
        lowest = torch.tensor(min(part)).half()
        if lowest.float() > min(part):
            lowest = torch.nextafter(lowest, torch.tensor(-torch.inf).half())
        exact = (torch.tensor(max(part)) - lowest.float()) / levels
        step = exact.half()
        if step.float() < exact:
            step = torch.nextafter(step, torch.tensor(torch.inf).half())
        for number in part:
            code = torch.round((torch.tensor(number) - lowest.float()) / max(step.float(), torch.tensor(2.0**-24)))
            assert 0 <= code <= levels
            restored.append(lowest.float() + step.float() * code)
    return torch.stack(restored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES[:5])
def test_keys_share_grids_along_slots_and_values_along_head_dim(make_memory, kind, shape):
    memory = draw(make_memory, shape, layers=1)
    stored = as_stored(memory, kind)
    heads, slots, width = shape
    for head in range(heads):
        for channel in range(width):
            row = memory.keys[0][0, head, :, channel]
            assert torch.equal(stored.keys[0][0, head, :, channel], slow_quantise(row.tolist(), kind))
        for slot in range(slots):
            row = memory.values[0][0, head, slot]
            assert torch.equal(stored.values[0][0, head, slot], slow_quantise(row.tolist(), kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_number_moves_by_more_than_half_a_step(make_memory, kind, shape):
    memory = draw(make_memory, shape, seed=3)
    stored = as_stored(memory, kind)
    for axis, before, after in ((2, memory.keys, stored.keys), (3, memory.values, stored.values)):
        for old, new in zip(before, after, strict=True):
            span = old.amax(axis, keepdim=True) - old.amin(axis, keepdim=True)
            # A grid in float16 is a little wider than its group: by 2^-10 of its step and of its lowest value.
            bound = (span * 1.002 + old.abs().amax(axis, keepdim=True) * 0.001) / (2 ** BITS[kind] - 1) / 2 + 1e-5
            assert ((new - old).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_file_is_read_as_its_codes_say_in_the_number_format_it_had(make_memory, same, kind, dtype):
    segments = (Segment("sink", 0, 1, 0, 1), Segment("gist", 1, 4, 1, 13, 4), Segment("verbatim", 4, 5, 12, 13))
    memory = draw(make_memory, dtype=dtype).__class__(
        **{name: getattr(draw(make_memory, dtype=dtype), name) for name in ("keys", "values", "config", "fingerprint")},
        segments=segments,
    )
    data = encode(memory, key=b"k", name="n", quantise=kind)
    read = decode(data, key=b"k")
    assert read.dtype == dtype
    assert same(read, as_stored(memory, kind))
    assert not same(read, memory)
    assert encode(memory, key=b"k", name="n", quantise=kind) == data


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors_itself_reads_the_codes_and_the_table_is_the_counted_one(make_memory, kind):
    memory = draw(make_memory, (2, 33, 7))
    tensors = load(encode(memory, quantise=kind))
    quantised = quantise(memory, kind)
    assert tensors.keys() == quantised.tensors.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in quantised.tensors.items())
    table = tensor_table([(2, 7)] * 2, 33, kind)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        name: entry["shape"] for name, entry in table.items()
    }
    assert max(entry["data_offsets"][1] for entry in table.values()) == quantised.nbytes


def test_reports_tell_errors_and_bytes(make_memory):
    memory = draw(make_memory, (2, 64, 64), dtype=torch.bfloat16)
    eight, four = (quantisation_report(memory, kind) for kind in KINDS)
    assert (eight.kind, four.kind) == KINDS
    assert eight.n_bytes_before == four.n_bytes_before == memory.nbytes
    assert four.n_bytes < eight.n_bytes < memory.nbytes
    assert 0 < eight.key_error < four.key_error < 0.1
    assert 0 < eight.value_error < four.value_error < 0.1
    stored = as_stored(memory, "int4")
    wrong = sum((a.double() - b.double()).square().sum() for a, b in zip(stored.keys, memory.keys, strict=True))
    total = sum(tensor.double().square().sum() for tensor in memory.keys)
    assert four.key_error == pytest.approx(float((wrong / total).sqrt()), rel=1e-3)
    told = read_manifest(encode(memory, quantise="int4"))["quantisation"]
    assert told == {"kind": "int4", "key_error": four.key_error, "value_error": four.value_error}
    assert read_manifest(encode(memory))["quantisation"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_equal_numbers_zeros_and_empty_memories_are_exact(make_memory, same, kind):
    constant = make_memory(slots=40)._map(lambda tensor: torch.full_like(tensor, 2.5))
    for memory in (constant, constant._map(torch.zeros_like), make_memory(slots=0, progress=None)):
        assert same(decode(encode(memory, quantise=kind)), memory)
        assert quantisation_report(memory, kind).key_error == 0
    tiny = make_memory()._map(lambda tensor: tensor * 1e-9)
    assert as_stored(tiny, kind).keys[0].abs().max() < 1e-7


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e9, -7e4])
def test_numbers_without_a_grid_are_refused(make_memory, number):
    memory = make_memory()
    memory.values[1][0, 1, 2, 3] = number
    with pytest.raises(InputError, match="cannot be quantised"):
        encode(memory, quantise="int8")


def test_an_unknown_kind_is_named(make_memory):
    for call in (quantise, as_stored, quantisation_report, lambda memory, kind: encode(memory, quantise=kind)):
        with pytest.raises(InputError, match="'int2'"):
            call(make_memory(), "int2")
    memory = make_memory()
    assert as_stored(memory, None) is memory


@pytest.mark.parametrize("kind", KINDS)
def test_truncations_and_bit_flips_are_all_refused(make_memory, kind):
    random.seed(12)
    data = encode(make_memory(slots=2), quantise=kind)
    for number in range(150):
        broken = bytearray(data)
        if number % 3:
            place = random.randrange(len(data) * 8)
            broken[place // 8] ^= 1 << place % 8
        else:
            del broken[random.randrange(len(data)) :]
        with pytest.raises(CorruptGistError):
            decode(bytes(broken))
