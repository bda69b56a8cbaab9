"""Memories as bytes: a safetensors file with a manifest, sealed.

Is        GistMemory -> bytes -> GistMemory, bit by bit; docs/store.md describes the format.
Flow      memory, seal -> [codec] -> store.
Change    what a file says about its memory (raise FORMAT in refs.py, and give UPGRADES the step from the one before).
Not here  where files lie -> base.py; texts -> source.py.
Holds     a memory is read exactly as it was written, or not at all. Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, get_args

import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ConfigError, CorruptGistError, InputError, MemoryMismatchError
from ultragist_rag.memory.memory import GistMemory, Progress, Segment, SegmentKind
from ultragist_rag.store.refs import FORMAT
from ultragist_rag.store.seal import BLANK, check_seal, parse_json, put_seal, stamp

__all__ = ["UPGRADES", "Expected", "check_match", "decode", "encode", "read_manifest"]

UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each older format that is still read: its manifest in, the manifest of the format after it out."""

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_TORCH_DTYPES = {name: dtype for dtype, name in _DTYPES.items()}
_START = b'{"__metadata__":{"checksum":"'
_SEAL_AT = 8 + len(_START)
_FORMAT = re.compile(rb'","format":"([0-9]{1,9})"')
_MAX_HEADER = 16 * 2**20
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


def encode(memory: GistMemory, *, key: bytes = b"", name: str = "", stored: float = 0.0) -> bytes:
    """Return the file of a memory; the same memory stored at the same time always gives the same bytes.

    Args:
        memory: The memory, on any device.
        key: Key for the checksum; without one it guards against damage, not against forgery.
        name: Id that the file will lie under.
        stored: Seconds since 1970 at which it is stored; 0 for a file outside of a store.

    Returns:
        A safetensors file.

    Raises:
        InputError: If the layers have several number formats, or one that files cannot have.
    """
    tensors = _in_order(memory.keys, memory.values)
    dtypes = {tensor.dtype for tensor in tensors.values()}
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
        "segments": [list(astuple(segment)) for segment in memory.segments],
        "progress": None if memory.progress is None else memory.progress.to_dict(),
        "dtype": _DTYPES[memory.dtype],
        "layers": len(memory.keys),
        "slots": memory.slots,
    }
    metadata = {"checksum": BLANK, "format": str(FORMAT), **stamp(stored)}
    metadata["manifest"] = json.dumps(manifest, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": metadata}
    parts = []
    stop = 0
    for label, tensor in tensors.items():
        parts.append(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        start, stop = stop, stop + len(parts[-1])
        header[label] = {"dtype": manifest["dtype"], "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
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
        tensors = _tensors(header, manifest, bytearray(memoryview(data)[start:]))
        progress = manifest["progress"]
        return GistMemory(
            keys=tuple(tensors[0::2]),
            values=tuple(tensors[1::2]),
            segments=tuple(_segment(*values) for values in manifest["segments"]),
            config=GistConfig.from_dict(manifest["config"]),
            progress=None if progress is None else Progress.from_dict(progress),
            fingerprint=manifest["model"],
            tokenizer_fingerprint=manifest["tokenizer"],
            lead_token=manifest["lead_token"],
            joint=manifest["mode"] == "joint",
        )
    except (AttributeError, KeyError, TypeError, InputError, ConfigError) as error:
        raise CorruptGistError(_damaged(f"the manifest is not one of this version ({error})")) from error


def read_manifest(data: bytes, *, key: bytes = b"") -> dict[str, Any]:
    """Return what a file says about its memory, without making tensors.

    Args:
        data: The whole file.
        key: The key it was written with.

    Returns:
        The manifest: fingerprints, config, mode, ratios, segments, progress, dtype, layers, slots.

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
        names = [name for name in mine if name not in _RATIO_SETTINGS and mine[name] != other.get(name)]
        if names:
            settings = ", ".join(f"{name} {other.get(name)!r} instead of {mine[name]!r}" for name in names)
            raise MemoryMismatchError(
                f"this memory was made with other settings: {settings}. Use those, or compress the text again."
            )


def _in_order(keys: tuple[Any, ...], values: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    pairs = zip(keys, values, strict=True)
    return {
        f"{kind}.{layer}": pair[kind == "values"] for layer, pair in enumerate(pairs) for kind in ("keys", "values")
    }


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


def _tensors(header: dict[str, Any], manifest: dict[str, Any], data: bytearray) -> list[torch.Tensor]:
    """Make the tensors; their table must be as `encode` writes it: layers in order, side by side, to the last byte."""
    dtype, slots = _TORCH_DTYPES.get(str(manifest.get("dtype"))), manifest.get("slots")
    names = [name for layer in range(len(header) // 2) for name in (f"keys.{layer}", f"values.{layer}")]
    if dtype is None or not names or list(header) != names or 2 * manifest["layers"] != len(names):
        raise CorruptGistError(
            _damaged(f"{len(header)} tensors of {manifest.get('dtype')!r} for {manifest.get('layers')!r} layers")
        )
    tensors = []
    stop = 0
    for name, entry in header.items():
        shape = entry.get("shape")
        if not _is_shape(shape, slots):
            raise CorruptGistError(_damaged(f"{name} has shape {shape!r}, not (1, kv_heads, {slots!r}, head_dim)"))
        count, start = math.prod(shape), stop
        stop += count * dtype.itemsize
        if entry != {"dtype": manifest["dtype"], "shape": shape, "data_offsets": [start, stop]} or stop > len(data):
            raise CorruptGistError(_damaged(f"{name} does not lie at bytes {start} to {stop} of {len(data)}"))
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
    if stop != len(data):
        raise CorruptGistError(_damaged(f"{len(data) - stop} bytes belong to no tensor"))
    return tensors


def _is_shape(shape: Any, slots: Any) -> bool:
    whole = isinstance(shape, list) and len(shape) == 4 and all(type(size) is int for size in shape)
    return (
        whole and shape[0] == 1 and shape[2] == slots and min(shape[1], slots + 1, shape[3]) > 0 and max(shape) < 2**31
    )


def _segment(*values: Any) -> Segment:
    segment = Segment(*values)
    if segment.kind not in get_args(SegmentKind) or any(type(number) is not int for number in values[1:5]):
        raise TypeError(f"{values} is no segment")
    return segment


def _damaged(what: str) -> str:
    return f"{what}: the file is damaged or foreign. Delete it and store the document again."
