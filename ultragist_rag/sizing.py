"""How many bytes the file of a memory has, counted before there is one.

Is        integer arithmetic: (layers, slots, number format) in, the table of tensors and sizes out. No torch.
Flow      errors -> [sizing] -> store.quantise, store.codec; cli_sizing.
Paper     KIVI, arXiv 2402.02750, section 3.2: groups of a quantised tensor.
Change    which tensors a file holds (raise FORMAT in store/refs.py), how long a group is, which models are listed.
Not here  the numbers inside the tensors -> store/quantise.py; what stands in front of them -> store/codec.py.
Holds     `n_file_bytes` is the size of what `codec.encode` writes, to the byte, given the length of its metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

__all__ = [
    "BITS",
    "GROUPS",
    "KINDS",
    "MODELS",
    "RATIOS",
    "Kind",
    "LayerShape",
    "ModelShape",
    "Size",
    "bundled_shape",
    "n_file_bytes",
    "n_groups",
    "size_rows",
    "sizes",
    "tensor_table",
]

Kind = Literal["int8", "int4"]
"""How a memory can be quantised."""

LayerShape = tuple[int, int]
"""Key-value heads and head dimension of a layer."""

KINDS: tuple[Kind, ...] = get_args(Kind)
BITS: dict[Kind, int] = {"int8": 8, "int4": 4}
GROUPS: dict[Kind, int] = {"int8": 64, "int4": 32}
"""Longest group: numbers that share a step and a lowest value."""

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
N_METADATA = 1080
"""Bytes of the metadata of a file, such as the bundled model makes: checksum, fingerprints, settings, segments."""


PER_TOKEN = 4
"""Bytes of a source token in the metadata, where its number stands in base64."""


def n_groups(count: int, kind: Kind) -> int:
    """Return how many groups of nearly equal length `count` numbers in a row make."""
    return -(-count // GROUPS[kind])


def tensor_table(layers: Sequence[LayerShape], slots: int, stored: str) -> dict[str, Any]:
    """Return the table of tensors of a file, as it stands in its header.

    Args:
        layers: Shape of each layer.
        slots: Slots of the memory.
        stored: Number format in the words of safetensors, for instance `BF16`, or `int8` or `int4`.

    Returns:
        For each tensor, in the order in which they lie side by side: dtype, shape, first byte and byte behind it.

    Example:
        >>> list(tensor_table([(2, 8)], 5, "int4"))
        ['keys.0.grid', 'values.0.grid', 'keys.0', 'values.0']
        >>> tensor_table([(2, 8)], 5, "BF16")["values.0"]
        {'dtype': 'BF16', 'shape': [1, 2, 5, 8], 'data_offsets': [160, 320]}
    """
    table: dict[str, Any] = {}
    stop = 0
    for name, dtype, shape in _tensors(layers, slots, stored):
        start, stop = stop, stop + math.prod(shape) * _BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
    return table


def _tensors(layers: Sequence[LayerShape], slots: int, stored: str) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, dtype and shape of each tensor; grids first, whose numbers take two bytes, so that all lie even."""
    kind = next((kind for kind in KINDS if kind == stored), None)
    if kind is not None:
        for layer, (heads, width) in enumerate(layers):
            yield f"keys.{layer}.grid", "F16", [2, heads, n_groups(slots, kind), width]
            yield f"values.{layer}.grid", "F16", [2, heads, slots, n_groups(width, kind)]
    for layer, (heads, width) in enumerate(layers):
        columns = width if kind is None else -(-width * BITS[kind] // 8)
        for name in ("keys", "values"):
            yield f"{name}.{layer}", stored if kind is None else "U8", [1, heads, slots, columns]


def n_file_bytes(table: dict[str, Any], n_metadata: int = N_METADATA) -> int:
    """Return the bytes of a file.

    Args:
        table: Its table of tensors.
        n_metadata: Bytes of the JSON of its metadata, braces included.

    Returns:
        8 bytes, the header filled up to a multiple of 8, the tensors.
    """
    n_header = len('{"__metadata__":') + n_metadata + len(json.dumps(table, separators=(",", ":")))
    n_tensors = max((entry["data_offsets"][1] for entry in table.values()), default=0)
    return int(8 + -(-n_header // 8) * 8 + n_tensors)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how large its memories are."""

    name: str
    n_layers: int
    kv_heads: int
    head_dim: int


MODELS = (
    ModelShape("Llama-3.2-1B", 16, 8, 64),
    ModelShape("Qwen2.5-1.5B", 28, 2, 128),
    ModelShape("Qwen2-7B", 28, 4, 128),
    ModelShape("Mistral-7B", 32, 8, 128),
    ModelShape("Llama-3.1-8B", 32, 8, 128),
    ModelShape("Qwen3-8B", 36, 8, 128),
    ModelShape("Llama-2-7B", 32, 32, 128),
)
"""Models of the table, beside the bundled one; others with their layers, heads and head dimension take their bytes."""

RATIOS = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of the file of one document.

    Attributes:
        model: Whose memory it is.
        ratio: Raw tokens per gist token.
        slots: Gist tokens.
        n_bytes: By number format: `bfloat16`, `int8`, `int4`.
    """

    model: ModelShape
    ratio: int
    slots: int
    n_bytes: dict[str, int]


def bundled_shape() -> ModelShape:
    """Return the shape of the model that comes with the package, from its files."""
    config = json.loads((files("ultragist_rag") / "bundled" / "config.json").read_text(encoding="utf-8"))
    return ModelShape("bundled", config["num_hidden_layers"], config["num_key_value_heads"], config["head_dim"])


def sizes(n_tokens: int, models: Sequence[ModelShape] | None = None, ratios: Sequence[int] = RATIOS) -> list[Size]:
    """Return the bytes of a document for models, ratios and number formats.

    Args:
        n_tokens: Tokens of the document.
        models: Models; None for the bundled one and `MODELS`.
        ratios: Raw tokens per gist token.

    Returns:
        One entry for each model and ratio. A last window that is no multiple of the ratio takes one gist more than
        counted here for every window before it.
    """
    found = []
    for model in (bundled_shape(), *MODELS) if models is None else models:
        layers = [(model.kv_heads, model.head_dim)] * model.n_layers
        for ratio in ratios:
            slots = -(-n_tokens // ratio)
            n_bytes = {
                dtype: n_file_bytes(tensor_table(layers, slots, stored), N_METADATA + PER_TOKEN * n_tokens)
                for dtype, stored in (("bfloat16", "BF16"), *((kind, kind) for kind in KINDS))
            }
            found.append(Size(model, ratio, slots, n_bytes))
    return found


def size_rows(found: Sequence[Size]) -> list[list[str]]:
    """Return sizes as a table of KiB: a head, then a row for each model and number format.

    Args:
        found: What `sizes` returned.

    Returns:
        Rows of equal length. Model and shape stand in the first row of each model only.
    """
    columns = {size.ratio: f"ratio {size.ratio} ({size.slots:,} slots)" for size in found}
    rows = [["model", "layers x kv heads x head dim", "stored as", *columns.values()]]
    for model in dict.fromkeys(size.model for size in found):
        names = [model.name, f"{model.n_layers} x {model.kv_heads} x {model.head_dim}"]
        mine = [size.n_bytes for size in found if size.model == model]
        for dtype in mine[0]:
            rows.append([*names, dtype, *(f"{n_bytes[dtype] / 1024:,.1f}" for n_bytes in mine)])
            names = ["", ""]
    return rows
