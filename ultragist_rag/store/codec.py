"""Memories as bytes: a safetensors file with a manifest, sealed.

Is        GistMemory -> bytes -> GistMemory; docs/file_format.md describes the format.
Flow      memory, sizing, quantise, seal -> [codec] -> store.
Change    what a file says about its memory (raise FORMAT in refs.py, and give UPGRADES the step from the one before).
Not here  which tensors a file holds -> ultragist_rag/sizing.py; where files lie -> base.py; texts -> source.py.
Holds     a memory is read bit by bit as it was written, quantised ones as their codes say, or not at all. Nothing is
          unpickled.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, get_args

import numpy as np
import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ConfigError, CorruptGistError, InputError, MemoryMismatchError
from ultragist_rag.memory.memory import GistMemory, Progress, Segment, SegmentKind
from ultragist_rag.memory.packing import KeysValues, pack, unpacked
from ultragist_rag.sizing import tensor_table
from ultragist_rag.store.quantise import Quantised, check_kind
from ultragist_rag.store.quantise import quantise as quantise_memory
from ultragist_rag.store.refs import FORMAT
from ultragist_rag.store.seal import BLANK, check_seal, parse_json, put_seal, stamp

__all__ = ["UPGRADES", "Expected", "check_match", "decode", "encode", "read_manifest"]

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda manifest: {**manifest, "verbatim": "", "quantisation": None},
}
"""For each older format that is still read: its manifest in, the manifest of the format after it out."""

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_TORCH_DTYPES = {**{name: dtype for dtype, name in _DTYPES.items()}, "U8": torch.uint8}
_START = b'{"__metadata__":{"checksum":"'
_SEAL_AT = 8 + len(_START)
_FORMAT = re.compile(rb'","format":"([0-9]{1,9})"')
_MAX_HEADER = 16 * 2**20
_MAX_SIZE = 2**31
_MAX_SOURCE_IDS = 2_000_000
_RATIO_SETTINGS = ("ratio", "ratios", "ratio_policy", "adapt_tokens", "adapt_positions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a file must belong to; whatever is empty or None is not compared.

    Attributes:
        name: Id that the file lies under.
        model: Fingerprint of the model that is going to read the memory.
        tokenizer: Fingerprint of its tokenizer.
        config: Its settings. Those that only choose a ratio are not compared: a memory knows its own.
    """

    name: str = ""
    model: str = ""
    tokenizer: str = ""
    config: GistConfig | None = None


def encode(
    memory: GistMemory, *, key: bytes = b"", name: str = "", stored: float = 0.0, quantise: str | None = None
) -> bytes:
    """Return the file of a memory; the same memory stored at the same time always gives the same bytes.

    Args:
        memory: The memory, on any device.
        key: Key for the checksum; without one it guards against damage, not against forgery.
        name: Id that the file will lie under.
        stored: Seconds since 1970 at which it is stored; 0 for a file outside of a store.
        quantise: `int8` or `int4`; None to write keys and values as they are.

    Returns:
        A safetensors file.

    Raises:
        InputError: If the layers have several number formats, or one that files cannot have, or numbers that cannot be
            quantised.
    """
    dtypes = {tensor.dtype for tensor in (*memory.keys, *memory.values)}
    if len(dtypes) > 1 or memory.dtype not in _DTYPES:
        raise InputError(
            f"a memory of {', '.join(sorted(map(str, dtypes)))} cannot be stored: "
            f"convert it with .to(dtype) to one of {', '.join(map(str, _DTYPES))}."
        )
    manifest = {
        "name": name,
        "model": memory.fingerprint,
        "tokenizer": memory.tokenizer_fingerprint,
        "config": memory.config.to_dict(),
        "mode": "joint" if memory.joint else "independent",
        "ratios": [segment.ratio for segment in memory.segments if segment.kind == "gist"],
        "lead_token": memory.lead_token,
        "verbatim": memory.verbatim,
        "segments": [list(astuple(segment)) for segment in memory.segments],
        "progress": None if memory.progress is None else memory.progress.to_dict(),
        "dtype": _DTYPES[memory.dtype],
        "quantisation": None,
        "layers": len(memory.keys),
        "slots": memory.slots,
    }
    if memory.source_ids is not None and len(memory.source_ids) <= _MAX_SOURCE_IDS:
        manifest["source_ids"] = _pack_ids(memory.source_ids)
    tensors: Mapping[str, torch.Tensor] = {
        f"{part}.{layer}": tensor
        for layer, pair in enumerate(zip(memory.keys, memory.values, strict=True))
        for part, tensor in zip(("keys", "values"), pair, strict=True)
    }
    if quantise is not None:
        quantised = quantise_memory(memory, quantise)
        tensors, errors = quantised.tensors, quantised.errors(memory)
        manifest["quantisation"] = {"kind": quantised.kind, "key_error": errors[0], "value_error": errors[1]}
    metadata = {"checksum": BLANK, "format": str(FORMAT), **stamp(stored)}
    metadata["manifest"] = json.dumps(manifest, separators=(",", ":"))
    shapes = [(keys.shape[1], keys.shape[3]) for keys in memory.keys]
    header = {"__metadata__": metadata, **tensor_table(shapes, memory.slots, quantise or _DTYPES[memory.dtype])}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    parts = [tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for name in list(header)[1:]]
    return put_seal(bytearray(b"".join((len(text).to_bytes(8, "little"), text, *parts))), _SEAL_AT, key)


def decode(data: bytes, *, key: bytes = b"", expected: Expected | None = None) -> GistMemory:
    """Read the file of a memory, all of it or nothing.

    Args:
        data: The whole file.
        key: The key it was written with.
        expected: What it must belong to.

    Returns:
        The memory, on the CPU.

    Raises:
        CorruptGistError: If the file is not whole, was altered, contradicts itself or has an unknown version.
        MemoryMismatchError: If it was made with another model, tokenizer or config than expected.
    """
    header, manifest, start = _open(data, key)
    if expected is not None:
        check_match(manifest, expected)
    try:
        tensors = _layers(header, manifest, bytearray(memoryview(data)[start:]))
        progress, source_ids = manifest["progress"], manifest.get("source_ids")
        return GistMemory(
            **tensors,
            segments=tuple(_segment(*values) for values in manifest["segments"]),
            config=GistConfig.from_dict(manifest["config"]),
            progress=None if progress is None else Progress.from_dict(progress),
            fingerprint=manifest["model"],
            tokenizer_fingerprint=manifest["tokenizer"],
            lead_token=manifest["lead_token"],
            joint=manifest["mode"] == "joint",
            verbatim=manifest["verbatim"],
            source_ids=None if source_ids is None else _unpack_ids(source_ids),
        )
    except (AttributeError, KeyError, TypeError, ValueError, InputError, ConfigError) as error:
        raise CorruptGistError(_damaged(f"the manifest is not one of this version ({error})")) from error


def _pack_ids(ids: torch.Tensor) -> str:
    """Three bytes for each token id, little-endian, in base64."""
    return base64.b64encode(ids.numpy().astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()).decode("ascii")


def _unpack_ids(text: str) -> torch.Tensor:
    parts = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, 3)
    return torch.from_numpy(np.pad(parts, ((0, 0), (0, 1))).view("<u4")[:, 0].astype(np.int32))


def read_manifest(data: bytes, *, key: bytes = b"") -> dict[str, Any]:
    """Return what a file says about its memory, without making tensors.

    Args:
        data: The whole file.
        key: The key it was written with.

    Returns:
        The manifest: fingerprints, config, mode, ratios, verbatim, segments, progress, dtype, quantisation, layers,
        slots.

    Raises:
        CorruptGistError: If the file is not whole, was altered or has an unknown version.
    """
    return _open(data, key)[1]


def check_match(manifest: dict[str, Any], expected: Expected) -> None:
    """Compare a manifest with what its file must belong to.

    Args:
        manifest: As `read_manifest` returns it.
        expected: Model, tokenizer and settings of the reader; id of the file.

    Raises:
        CorruptGistError: If the file lies under another id than its own.
        MemoryMismatchError: If it was made with another model, tokenizer or config.
    """
    if expected.name and manifest.get("name") != expected.name:
        raise CorruptGistError(_damaged(f"the memory of {manifest.get('name') or 'no id'} lies under {expected.name}"))
    for what, wanted in (("model", expected.model), ("tokenizer", expected.tokenizer)):
        found = manifest.get(what)
        if wanted and found and found != wanted:
            raise MemoryMismatchError(
                f"this memory was made with the {what} {found}, not with {wanted}: its keys and values mean nothing "
                "to another one. Load what it was made with, or compress the text again."
            )
    if expected.config is not None:
        mine, other = expected.config.to_dict(), manifest.get("config", {})
        names = [
            name for name in {**mine, **other} if name not in _RATIO_SETTINGS and mine.get(name) != other.get(name)
        ]
        if names:
            settings = ", ".join(f"{name} {other.get(name)!r} instead of {mine.get(name)!r}" for name in names)
            raise MemoryMismatchError(
                f"this memory was made with other settings: {settings}. Use those, or compress the text again."
            )


def _open(data: bytes, key: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Check a file as a whole; return its table of tensors, its manifest and where the tensors begin."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size or size > _MAX_HEADER or not data.startswith(_START, 8):
        raise CorruptGistError(_damaged(f"{len(data)} bytes are not the whole file of a memory"))
    found = _FORMAT.match(data, _SEAL_AT + len(BLANK))
    version = int(found.group(1)) if found else 0
    if version != FORMAT and not (version == FORMAT - 1 and version in UPGRADES):
        raise CorruptGistError(
            _damaged(f"format {version} is unknown to this version, which reads {FORMAT} and the one before")
        )
    check_seal(data, _SEAL_AT, key)
    header = parse_json(data[8 : 8 + size])
    manifest = parse_json(str(header.pop("__metadata__").get("manifest")))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise CorruptGistError(_damaged("the manifest has no config"))
    return header, manifest if version == FORMAT else UPGRADES[version](manifest), 8 + size


def _layers(header: dict[str, Any], manifest: dict[str, Any], data: bytearray) -> KeysValues:
    """Make keys and values, in one piece if they can be; the table must be as `encode` writes it, to the last byte."""
    dtype, quantisation = manifest["dtype"], manifest["quantisation"]
    stored = dtype if quantisation is None else check_kind(quantisation["kind"])
    layers, slots = manifest["layers"], manifest["slots"]
    if dtype not in _TORCH_DTYPES or type(layers) is not int or type(slots) is not int or not 0 < layers <= len(header):
        raise CorruptGistError(_damaged(f"{len(header)} tensors of {dtype!r} for {layers!r} layers of {slots!r} slots"))
    shapes = [header[f"keys.{layer}{'' if quantisation is None else '.grid'}"]["shape"] for layer in range(layers)]
    if not all(map(_is_shape, shapes)) or not 0 <= slots < _MAX_SIZE:
        raise CorruptGistError(_damaged(f"layers of shapes {shapes} with {slots} slots"))
    table = tensor_table([(shape[1], shape[3]) for shape in shapes], slots, stored)
    # Compared as text: in Python 1 == 1.0 == True, and dictionaries are equal in any order.
    for found, wanted in zip(header.items(), table.items(), strict=False):
        if json.dumps(found) != json.dumps(wanted):
            raise CorruptGistError(_damaged(f"tensor {found} stands where {wanted} must be"))
    stop = list(table.values())[-1]["data_offsets"][1]
    if len(header) != len(table) or len(data) != stop:
        raise CorruptGistError(
            _damaged(f"{len(header)} tensors of {len(data)} bytes, not {len(table)} tensors of {stop} bytes")
        )
    if quantisation is None and len({tuple(shape) for shape in shapes}) == 1 and slots:
        flat = torch.frombuffer(data, dtype=_TORCH_DTYPES[dtype])
        return unpacked(flat.view(layers, 2, *shapes[0][1:]))
    tensors = {name: _tensor(data, entry) for name, entry in table.items()}
    if quantisation is not None:
        if not all(tensor.isfinite().all() for name, tensor in tensors.items() if name.endswith("grid")):
            raise CorruptGistError(_damaged("a grid holds numbers that are not finite"))
        return pack(*Quantised(stored, tensors).restore(_TORCH_DTYPES[dtype]))
    keys, values = (tuple(tensors[f"{part}.{layer}"] for layer in range(layers)) for part in ("keys", "values"))
    return {"keys": keys, "values": values}


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(size) is int for size in shape)
    return whole and min(shape[1], shape[3]) > 0 and max(shape) < _MAX_SIZE


def _tensor(data: bytearray, entry: dict[str, Any]) -> torch.Tensor:
    dtype, start, count = _TORCH_DTYPES[entry["dtype"]], entry["data_offsets"][0], math.prod(entry["shape"])
    flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
    return flat.view(entry["shape"])


def _segment(*values: Any) -> Segment:
    segment = Segment(*values)
    if segment.kind not in get_args(SegmentKind) or any(type(number) is not int for number in values[1:5]):
        raise TypeError(f"{values} is no segment")
    return segment


def _damaged(what: str) -> str:
    return f"{what}: the file is damaged or foreign. Delete it and store the document again."
