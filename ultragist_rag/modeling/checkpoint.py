"""Read and write gist weights: the authors' two formats, our merged format, our adapter-only format.

Is        the only file that knows the authors' names (`ultragist_*`, `beacon_*`) and what our files are called.
Flow      config -> [modeling] -> engine.
Paper     legacy code: config.json keys and parameter names of UltraGist and Activation Beacon checkpoints.
Change    file names, the version of our format, a further foreign format.
Not here  loading the base model -> modeling/loading.py.
Holds     what is written is read back bit for bit; a folder is never left half-written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.config import GistConfig, check_source_bias
from ultragist_rag.errors import CheckpointError

__all__ = [
    "ADAPTER_FILE",
    "CONFIG_FILE",
    "FAMILIES",
    "authors_name",
    "authors_settings",
    "load_into",
    "our_name",
    "read_tensors",
]

CONFIG_FILE = "ultragist_config.json"
ADAPTER_FILE = "ultragist_adapter.safetensors"
FORMAT_VERSION = 1
FAMILIES = ("ultragist", "beacon")
_OURS = "ultragist"


def authors_settings(values: Mapping[str, Any]) -> tuple[str, GistConfig] | None:
    """Read the settings out of the authors' config.json.

    Args:
        values: Its keys and values.

    Returns:
        The family (`ultragist` or `beacon`) and our settings; None if the keys are not there.

    Raises:
        CheckpointError: If a setting is one that we do not support.
    """
    family = next((name for name in FAMILIES if f"{name}_window" in values), None)
    if family is None:
        return None
    get = {key.removeprefix(f"{family}_"): value for key, value in values.items() if key.startswith(f"{family}_")}.get
    params = list(get("param") or [])
    if set(params) - set("qkvo"):
        raise CheckpointError(
            f"{family}_param is {params}, but only q, k, v and o can be followed. Use another checkpoint."
        )
    ratio = get("ratio") or [8]
    ratios = tuple(ratio if isinstance(ratio, list | tuple) else [ratio])
    policy, _, tokens = str(get("ratio_mix") or "step-random").partition("-")
    adapts = policy == "adapt"
    positive = [r for r in ratios if r > 0] or [8]
    beacon = family == "beacon"
    window = int(values[f"{family}_window"])
    return family, GistConfig(
        window=window,
        stride=get("stride") or window,
        ratio=8 if 8 in positive else min(positive),
        ratios=ratios,
        ratio_policy="adapt" if adapts else get("ratio_mix") or "step-random",
        adapt_tokens=int(tokens) if adapts else 0,
        adapt_positions=_scaled_positions(values) if beacon and adapts else None,
        placement=(get("pos") or "interleave") if beacon else "append",
        attention=get("attn") or ("full-coverage" if beacon else "step-expansion"),
        attend_previous=bool(get("attend_prev", True)),
        even_spread=not beacon,
        sink=get("sink_size") or 0,
        projections="".join(letter for letter in "qkvo" if letter in params),
    )


def _scaled_positions(values: Mapping[str, Any]) -> int | None:
    scaling = values.get("rope_scaling") or {}
    factor = scaling.get("factor")
    return int(values["max_position_embeddings"] * factor) if factor else None


def authors_name(name: str, family: str) -> str:
    """Turn our parameter name into the authors': `...ultragist_q_proj.weight` into `...beacon_q_proj.weight`."""
    return name.replace(f".{_OURS}_", f".{family}_")


def our_name(name: str, family: str) -> str:
    """Turn the authors' parameter name into ours."""
    return name.replace(f".{family}_", f".{_OURS}_")


def read_tensors(files: list[Path], marks: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the tensors whose names contain a mark, out of safetensors or torch files.

    Args:
        files: Weight files.
        marks: Parts of names.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as handle:
                    names = [name for name in handle.keys() if any(mark in name for mark in marks)]  # noqa: SIM118
                    found.update({name: handle.get_tensor(name) for name in names})
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
                found.update({name: value for name, value in state.items() if any(mark in name for mark in marks)})
        except (OSError, SafetensorError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{path.name} cannot be read ({error}). Fetch or write it again.") from error
    return found


@torch.no_grad()
def load_into(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> list[str]:
    """Copy tensors into parameters of the same names.

    Args:
        parameters: Gist parameters by our names.
        tensors: Tensors by our names.

    Returns:
        Names of parameters that have no tensor.

    Raises:
        CheckpointError: If a tensor has no parameter, or another shape.
    """
    unknown = sorted(set(tensors) - set(parameters))
    if unknown:
        raise CheckpointError(f"weights {unknown[:3]} have no place in this model: config and weights do not fit.")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, but the model needs {tuple(parameters[name].shape)}."
            )
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
    return sorted(set(parameters) - set(tensors))


def read_config(path: Path) -> dict[str, Any]:
    """Read our config file.

    Args:
        path: Of `ultragist_config.json`.

    Returns:
        Its contents: `format_version`, `gist_config`, `source_bias`, and for adapters the base.

    Raises:
        CheckpointError: If it is damaged or of another version.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        version = contents["format_version"]
        contents["gist_config"].keys()
        contents["source_bias"] = check_source_bias(contents.get("source_bias", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}). Write it again.") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format_version {version}, this release reads {FORMAT_VERSION}. Update it.")
    return dict(contents)
