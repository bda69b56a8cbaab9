"""Files of memories: bit by bit the same, or refused."""

import itertools
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import CorruptGistError, InputError, MemoryMismatchError
from ultragist_rag.memory.memory import Progress, Segment
from ultragist_rag.store import codec
from ultragist_rag.store.codec import Expected, decode, encode, read_manifest
from ultragist_rag.store.seal import BLANK, put_seal

SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-7, 6e4, 1.0]
MIXED = (
    Segment("sink", 0, 1, 0, 1),
    Segment("gist", 1, 3, 1, 9, 4, "turn \u00e9"),
    Segment("verbatim", 3, 4, 9, 10),
    Segment("raw", 4, 5, 10, 11),
)


def changed(data, change, key=b""):
    """Write a file's header anew after `change(header, manifest)`, with a checksum that fits: a hostile writer."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    manifest = json.loads(header["__metadata__"]["manifest"])
    change(header, manifest)
    header["__metadata__"] = {**header["__metadata__"], "checksum": BLANK, "manifest": json.dumps(manifest)}
    text = json.dumps(header, separators=(",", ":")).encode()
    return put_seal(bytearray(len(text).to_bytes(8, "little") + text + data[8 + size :]), 8 + len(codec._START), key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_read_as_it_was_written(make_memory, same, dtype):
    memory = make_memory(dtype=dtype)
    memory.keys[1][0, 0, 0] = torch.tensor(SPECIAL).to(dtype)
    data = encode(memory)
    assert same(decode(data), memory)
    assert encode(decode(data)) == data


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": 0, "progress": None},
        {"joint": True, "lead_token": None, "fingerprint": "", "tokenizer_fingerprint": ""},
        {"segments": MIXED, "verbatim": "regex"},
        {
            "progress": Progress(9, 8, 1, 4, 2, (5, 6, 7), 2, (2, 4), (0, 2)),
            "config": GistConfig(window=8, ratios=(4,), rank=3),
        },
    ],
)
def test_every_field_is_read_as_it_was_written(make_memory, same, changes):
    memory = make_memory(**changes)
    assert same(decode(encode(memory)), memory)


def test_views_and_gradients_are_written_as_what_they_show(make_memory, same):
    memory = make_memory()
    turned = memory._map(lambda tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_())
    assert not turned.keys[0].is_contiguous()
    assert encode(turned) == encode(memory)


def test_the_file_is_what_safetensors_itself_reads(make_memory, tmp_path):
    memory = make_memory(dtype=torch.bfloat16)
    data = encode(memory)
    tensors = load(data)
    assert list(map(len, (memory.keys, tensors))) == [3, 6]
    for layer in range(3):
        assert torch.equal(tensors[f"keys.{layer}"], memory.keys[layer])
        assert torch.equal(tensors[f"values.{layer}"], memory.values[layer])
    (tmp_path / "memory.safetensors").write_bytes(data)
    with safe_open(tmp_path / "memory.safetensors", "pt") as file:
        assert json.loads(file.metadata()["manifest"]) == read_manifest(data)


def test_reading_a_manifest_tells_what_was_written(make_memory):
    manifest = read_manifest(encode(make_memory(), key=b"k", name="n"), key=b"k")
    told = {
        name: manifest[name] for name in ("name", "model", "tokenizer", "ratios", "mode", "dtype", "layers", "slots")
    }
    assert list(told.values()) == ["n", "model-1", "tokenizer-1", [4], "independent", "F32", 3, 5]


def test_300_truncations_and_bit_flips_are_all_refused(make_memory):
    random.seed(11)
    data = encode(make_memory(slots=2))
    for number in range(300):
        broken = bytearray(data)
        if number % 3:
            place = random.randrange(len(data) * 8)
            broken[place // 8] ^= 1 << place % 8
        else:
            del broken[random.randrange(len(data)) :]
        with pytest.raises(CorruptGistError):
            decode(bytes(broken))


def test_every_bit_of_the_header_counts(make_memory):
    data = encode(make_memory(slots=1))
    header = 8 + int.from_bytes(data[:8], "little")
    for place, bit in itertools.product(range(header), (1, 32)):
        broken = bytearray(data)
        broken[place] ^= bit
        with pytest.raises(CorruptGistError):
            decode(bytes(broken))


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04" * 30, b"\x80\x04\x95pickle" * 20])
def test_foreign_bytes_are_refused(data):
    with pytest.raises(CorruptGistError):
        decode(data)


def test_additions_are_refused(make_memory):
    data = encode(make_memory())
    for longer in (data + b"\0", data + data, b"\0" + data):
        with pytest.raises(CorruptGistError):
            decode(longer)


def test_a_file_written_with_another_key_is_refused(make_memory, same):
    data = encode(make_memory(), key=b"one")
    assert same(decode(data, key=b"one"), make_memory())
    for key in (b"", b"two"):
        with pytest.raises(CorruptGistError, match="checksum"):
            decode(data, key=key)


@pytest.mark.parametrize("version", ["0", "3", "4", "999999999"])
def test_an_unknown_version_is_named(make_memory, version):
    data = changed(encode(make_memory()), lambda header, _: header["__metadata__"].update(format=version))
    with pytest.raises(CorruptGistError, match=f"format {version} is unknown"):
        decode(data)


def test_the_version_before_is_read_through_its_upgrade(make_memory, same, monkeypatch):
    old = changed(encode(make_memory()), lambda _, manifest: manifest.pop("lead_token"))
    with pytest.raises(CorruptGistError, match="lead_token"):
        decode(old)
    monkeypatch.setattr(codec, "FORMAT", 3)
    with pytest.raises(CorruptGistError, match="format 2 is unknown"):
        decode(old)
    monkeypatch.setitem(codec.UPGRADES, 2, lambda manifest: {**manifest, "lead_token": 1})
    assert same(decode(old), make_memory())
    assert encode(make_memory()) != old
    assert same(decode(encode(make_memory())), make_memory())
    monkeypatch.setattr(codec, "FORMAT", 4)
    with pytest.raises(CorruptGistError, match="format 2 is unknown"):
        decode(old)


def entry(name, **values):
    return lambda header, _: header[name].update(values)


@pytest.mark.parametrize(
    "change",
    [
        entry("keys.0", shape=[1, -2, 5, -8]),
        entry("keys.0", shape=[1, 2, 5, 2**62]),
        entry("keys.0", shape=[1, 2**70, 5, 8]),
        entry("keys.0", shape=[1, 2.0, 5, 8]),
        entry("keys.0", shape=[1, 2, 5, 8, 1]),
        entry("keys.0", shape="1258"),
        entry("keys.0", shape=[True, 2, 5, 8]),
        entry("keys.0", shape=[1, 0, 5, 8], data_offsets=[0, 0]),
        entry("keys.1", data_offsets=[0, 320]),
        entry("keys.1", data_offsets=[640, 10**18]),
        entry("keys.1", data_offsets=[-320, 0]),
        entry("keys.1", data_offsets=[960, 640]),
        entry("values.2", dtype="I64"),
        entry("values.2", dtype="BF16", shape=[1, 2, 5, 16]),
        entry("values.2", extra=1),
        lambda header, _: header.update({"keys.0": [1]}),
        lambda header, _: header.update(more=header["keys.0"]),
        lambda header, _: header.update({"keys.0": header.pop("keys.0")}),
        lambda header, _: [header.pop("keys.2"), header.pop("values.2")],
        lambda header, _: [header.pop(name) for name in list(header) if name != "__metadata__"],
        lambda _, manifest: manifest.update(layers=2),
        lambda _, manifest: manifest.update(layers="3"),
        lambda _, manifest: manifest.update(slots=4),
        lambda _, manifest: manifest.update(dtype="BF16"),
        lambda _, manifest: manifest.update(dtype=["F32"]),
        lambda _, manifest: manifest.update(dtype="U8"),
        lambda _, manifest: manifest.update(layers=0),
        lambda _, manifest: manifest.update(layers=True),
        lambda _, manifest: manifest.update(slots=-5),
        lambda _, manifest: manifest.update(slots=2**31),
        lambda _, manifest: manifest.update(quantisation={"kind": "int8"}),
        lambda _, manifest: manifest.update(quantisation={"kind": "int2"}),
        lambda _, manifest: manifest.update(quantisation="int8"),
        lambda _, manifest: manifest.pop("quantisation"),
        lambda _, manifest: manifest.update(config=None),
        lambda _, manifest: manifest["config"].update(window=-1),
        lambda _, manifest: manifest["config"].update(invented=1),
        lambda _, manifest: manifest.update(segments=[["gist", 0, 4, 0, 20, 4, None]]),
        lambda _, manifest: manifest.update(segments=[["thing", 0, 5, 0, 20, 4, None]]),
        lambda _, manifest: manifest.update(segments=[["gist", 0, 5, 0, "20", 4, None]]),
        lambda _, manifest: manifest.update(segments=[["gist"]]),
        lambda _, manifest: manifest.update(segments=7),
        lambda _, manifest: manifest.update(progress={"invented": 1}),
        lambda _, manifest: manifest.pop("mode"),
    ],
)
def test_a_hostile_header_with_a_fitting_checksum_is_refused(make_memory, change):
    data = encode(make_memory())
    assert decode(changed(data, lambda header, manifest: None)).slots == 5
    with pytest.raises(CorruptGistError):
        decode(changed(data, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header["keys.0.grid"].update(dtype="BF16"),
        lambda header, _: header["keys.0.grid"].update(shape=[2, 2, 2, 8]),
        lambda header, _: header["keys.0.grid"].update(shape=[2, 2, 1, -8]),
        lambda header, _: header["values.1.grid"].update(shape=[2, 2, 5, 2]),
        lambda header, _: header["keys.1"].update(dtype="I8"),
        lambda header, _: header["keys.1"].update(shape=[1, 2, 5, 9]),
        lambda header, _: header.update({"keys.0": header.pop("keys.0")}),
        lambda header, _: header.pop("values.2.grid"),
        lambda header, _: header.update(more=header["keys.0"]),
        lambda _, manifest: manifest.update(quantisation=None),
        lambda _, manifest: manifest["quantisation"].pop("kind"),
        lambda _, manifest: manifest["quantisation"].update(kind="int16"),
        lambda _, manifest: manifest["quantisation"].update(kind=8),
        lambda _, manifest: manifest.update(quantisation=[]),
        lambda _, manifest: manifest.update(dtype="int8"),
        lambda _, manifest: manifest.update(slots=4),
        lambda _, manifest: manifest.update(layers=2),
    ],
)
def test_a_hostile_header_of_a_quantised_memory_is_refused(make_memory, change):
    data = encode(make_memory(), quantise="int8")
    assert decode(changed(data, lambda header, manifest: None)).slots == 5
    with pytest.raises(CorruptGistError):
        decode(changed(data, change))


def test_a_grid_that_is_not_finite_is_refused(make_memory):
    data = bytearray(encode(make_memory(), quantise="int4"))
    start = 8 + int.from_bytes(data[:8], "little")
    data[start : start + 2] = b"\x00\x7c"  # infinity
    with pytest.raises(CorruptGistError, match="finite"):
        decode(changed(bytes(data), lambda header, manifest: None))


@pytest.mark.parametrize(
    "text",
    [
        '"manifest":"{}","manifest":"{}"}}',
        '"manifest":"' + "[" * 5000 + '"}}',
        '"manifest":"NaN"}}',
        '"manifest":"[]"}}',
        '"manifest":{}}}',
        '"other":"{}"}}',
        '"manifest":"1' + "0" * 5000 + '"}}',
        '"manifest":"{}"',
        '"manifest":"{}"}} x',
        "\xff",
    ],
)
def test_a_header_that_is_no_strict_json_is_refused(text):
    header = codec._START + BLANK.encode() + b'","format":"2",' + text.encode("latin-1")
    data = put_seal(bytearray(len(header).to_bytes(8, "little") + header), 8 + len(codec._START), b"")
    with pytest.raises(CorruptGistError):
        decode(data)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**31, 10**8])
def test_a_header_of_huge_size_is_refused(make_memory, size):
    data = encode(make_memory())
    with pytest.raises(CorruptGistError):
        decode(size.to_bytes(8, "little") + data[8:])


@pytest.mark.parametrize(
    ("expected", "what"),
    [
        (Expected(model="model-2"), "made with the model model-1, not with model-2"),
        (Expected(tokenizer="tokenizer-2"), "made with the tokenizer tokenizer-1, not with tokenizer-2"),
        (Expected(config=GistConfig(window=32, stride=16, ratio=4)), "window 16 instead of 32"),
        (Expected(config=GistConfig(window=16, ratio=4, attention="segmentation")), "'step-expansion' instead"),
    ],
)
def test_a_memory_of_another_model_tokenizer_or_config_is_refused(make_memory, expected, what):
    data = encode(make_memory())
    with pytest.raises(MemoryMismatchError, match=what):
        decode(data, expected=expected)


def test_what_only_chooses_a_ratio_does_not_make_a_memory_foreign(make_memory, same):
    data = encode(make_memory())
    config = GistConfig(window=16, ratio=8, ratios=(2, 4), ratio_policy="sequence")
    assert same(decode(data, expected=Expected(model="model-1", tokenizer="tokenizer-1", config=config)), make_memory())


def test_a_file_under_another_id_is_refused(make_memory):
    data = encode(make_memory(), name="a" * 26)
    with pytest.raises(CorruptGistError, match="lies under"):
        decode(data, expected=Expected(name="b" * 26))


def test_number_formats_without_a_name_are_refused(make_memory):
    with pytest.raises(InputError, match="convert it"):
        encode(make_memory(dtype=torch.float8_e5m2))
    mixed = make_memory()
    with pytest.raises(InputError, match="cannot be stored"):
        encode(make_memory(keys=(mixed.keys[0].half(), *mixed.keys[1:])))
