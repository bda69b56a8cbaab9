"""Load a model with its gist weights, whatever format it is in.

Is        `load(name)`: find out the format, load the base through transformers, attach, fill in gist weights;
          `load_calibration(name)`: what was measured of them.
Flow      config -> modeling -> [loading] -> engine.
Change    how a format is recognised.
Not here  names and files of the formats -> checkpoint.py.
Holds     no remote code is run; a plain base gets copies of its own projections and a warning that they are untrained.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import CheckpointError, ConfigError
from ultragist_rag.modeling import checkpoint
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.modeling.calibration import CALIBRATION_FILE, Calibration
from ultragist_rag.modeling.fingerprint import base_fingerprint

__all__ = ["Loaded", "load", "load_calibration"]

_HUB_KEYS = ("revision", "token", "local_files_only", "cache_dir", "subfolder")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its gist modules.

    Attributes:
        attachment: The model.
        tokenizer: Its tokenizer; None if there is none.
        family: Whose parameter names it has: `ultragist` or `beacon`.
        trained_composed: Whether its makers trained it on independently compressed documents, as far as is known.
        source: Name or folder of the base, and its revision.
        source_bias: How strongly its makers hold answers to the words of their prompts, see `Decoding`.
    """

    attachment: Attachment
    tokenizer: Any
    family: str
    trained_composed: bool
    source: tuple[str, str | None]
    source_bias: float = 0.0


def load(name: str, config: GistConfig | None, options: dict[str, Any]) -> Loaded:
    """Load a model.

    Args:
        name: Folder or hub id.
        config: Settings, instead of those that come with the model.
        options: Passed on to transformers (revision, token, dtype, device_map, quantization_config and so on).

    Returns:
        The model, its tokenizer and what is known of it.

    Raises:
        CheckpointError: If files are missing, damaged or do not fit.
        ConfigError: If `config` contradicts gist weights that come with the model.
    """
    hub = {key: options[key] for key in _HUB_KEYS if key in options}
    ours = _find(name, checkpoint.CONFIG_FILE, hub)
    if ours is not None:
        return _load_ours(name, ours, config, options, hub)
    path = _find(name, "config.json", hub)
    if path is None:
        raise CheckpointError(
            f"{name!r} has neither config.json nor {checkpoint.CONFIG_FILE}: give a model's folder or hub id."
        )
    found = checkpoint.authors_settings(json.loads(path.read_text(encoding="utf-8")))
    model = _load_base(name, options)
    family, settings = found or ("ultragist", GistConfig())
    settings = _override(settings, config, bound=found is not None)
    attachment = attach(model, settings)
    missing = list(attachment.parameters())
    if found is not None:
        tensors = checkpoint.read_tensors(_weight_files(name, hub), (f".{family}_",))
        missing = checkpoint.load_into(
            attachment.parameters(), {checkpoint.our_name(key, family): value for key, value in tensors.items()}
        )
    _warn_untrained(name, missing)
    return Loaded(attachment, _load_tokenizer(name, hub), family, found is None, (name, options.get("revision")))


def load_calibration(
    name: str, given: str | Path | Calibration | Literal[False] | None, options: dict[str, Any]
) -> Calibration | None:
    """Read the calibration that lies beside the weights of a model.

    Args:
        name: Folder or hub id.
        given: A file or calibration to take instead; False for none.
        options: As for `load`.

    Returns:
        The calibration; None if there is none.

    Raises:
        CheckpointError: If its file is damaged, or the given one is missing.
    """
    if given is False or isinstance(given, Calibration):
        return given or None
    path = None if given is None else Path(given)
    if path is None:
        try:
            path = _find(name, CALIBRATION_FILE, {key: options[key] for key in _HUB_KEYS if key in options})
        except CheckpointError:  # a hub that cannot be asked; whether the model itself is at hand, `load` says
            return None
    return None if path is None else Calibration.read(path)


def _load_ours(
    name: str, path: Path, config: GistConfig | None, options: dict[str, Any], hub: dict[str, Any]
) -> Loaded:
    contents = checkpoint.read_config(path)
    settings = _override(GistConfig.from_dict(contents["gist_config"]), config, bound=True)
    weights = _find(name, checkpoint.ADAPTER_FILE, hub)
    if weights is None:
        raise CheckpointError(f"{name!r} has {checkpoint.CONFIG_FILE} but no {checkpoint.ADAPTER_FILE}.")
    tensors = checkpoint.read_tensors([weights], (".",))
    base, revision = contents.get("base_model_name_or_path"), contents.get("base_revision")
    source, base_options = (name, options.get("revision")), options
    if base is not None:
        source = (base, revision)
        base_options = (
            {**options, "revision": revision} if revision else {k: v for k, v in options.items() if k != "revision"}
        )
    attachment = attach(_load_base(source[0], base_options), settings)
    wanted = contents.get("base_fingerprint")
    if wanted and wanted != (mine := base_fingerprint(attachment.model)):
        raise CheckpointError(
            f"the adapter {name!r} was made for base {wanted[:12]}, but {source[0]!r} is {mine[:12]}. "
            "Load it with its own base."
        )
    missing = checkpoint.load_into(attachment.parameters(), tensors)
    if missing:
        raise CheckpointError(f"{checkpoint.ADAPTER_FILE} lacks {missing[:3]}: write the adapter again.")
    tokenizer = _load_tokenizer(name, hub) or (_load_tokenizer(*_tokenizer_source(source, hub)) if base else None)
    return Loaded(
        attachment,
        tokenizer,
        contents.get("family", "ultragist"),
        contents.get("trained_composed", True),
        source,
        contents["source_bias"],
    )


def _tokenizer_source(source: tuple[str, str | None], hub: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    rest = {key: value for key, value in hub.items() if key != "revision"}
    return source[0], {**rest, "revision": source[1]} if source[1] else rest


def _override(settings: GistConfig, config: GistConfig | None, bound: bool) -> GistConfig:
    if config is None:
        return settings
    for field in ("projections", "rank"):
        if bound and getattr(config, field) != getattr(settings, field):
            raise ConfigError(
                f"{field} is {getattr(config, field)!r}, but the gist weights were made with "
                f"{getattr(settings, field)!r}. Leave it as it is."
            )
    return config


def _find(name: str, file: str, hub: dict[str, Any]) -> Path | None:
    """Find a file in a folder, or fetch it from the hub; None if it is not there."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name!r} is neither a folder nor a model that the hub gives us: {reason}") from error
    return Path(found) if found else None


def _weight_files(name: str, hub: dict[str, Any]) -> list[Path]:
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = _find(name, f"{stem}.{suffix}.index.json", hub)
        if index is not None:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return [path for shard in shards if (path := _find(name, shard, hub)) is not None]
        single = _find(name, f"{stem}.{suffix}", hub)
        if single is not None:
            return [single]
    raise CheckpointError(f"{name!r} has no weights: neither model.safetensors nor pytorch_model.bin.")


def _load_base(name: str, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    with _quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options)
    model.eval()
    return model


def _load_tokenizer(name: str, hub: dict[str, Any]) -> Any:
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if all(_find(name, file, hub) is None for file in files):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)


def _warn_untrained(name: str, missing: list[str]) -> None:
    if missing:
        warnings.warn(
            f"{len(missing)} gist parameters of {name!r} are untrained copies of the base: answers from its memories "
            "will be poor. Train them (`ultragist-rag train`) or load a checkpoint that has them.",
            stacklevel=5,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the report that gist weights were not expected by the plain model class: we read them ourselves."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
