"""Write a model with its gist weights: merged (base and all) or adapter-only.

Is        the inverse of loading.py for our two formats.
Flow      config -> modeling -> [saving] -> engine.
Change    what a saved folder holds.
Not here  names of files and reading -> checkpoint.py, loading.py.
Holds     what is written is read back bit for bit; a folder is replaced at once or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ultragist_rag.config import check_source_bias
from ultragist_rag.errors import CheckpointError
from ultragist_rag.modeling.attach import PREFIX, Attachment
from ultragist_rag.modeling.calibration import CALIBRATION_FILE, Calibration
from ultragist_rag.modeling.checkpoint import ADAPTER_FILE, CONFIG_FILE, FAMILIES, FORMAT_VERSION
from ultragist_rag.modeling.fingerprint import base_fingerprint

__all__ = ["save"]


def save(
    attachment: Attachment,
    tokenizer: Any,
    path: Path,
    *,
    source: tuple[str, str | None] | None,
    notes: dict[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write a folder.

    Args:
        attachment: The model with its gist modules.
        tokenizer: Written beside a merged model, if there is one.
        path: The folder.
        source: Name and revision of the base to write an adapter only; None to write everything.
        notes: Further entries of `ultragist_config.json`.
        calibration: What was measured of these weights; written beside them.

    Raises:
        CheckpointError: If the folder holds files that are not a saved model of ours, or the base has no name.
        InputError: If the `source_bias` among the notes is none.
    """
    check_source_bias(notes["source_bias"])
    if source is not None and not source[0]:
        raise CheckpointError("an adapter names its base, but where this one came from is not known: give its hub id.")
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / CONFIG_FILE).is_file())):
        raise CheckpointError(f"{path} holds files that are not a saved model of this package: choose another folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = work / "new"
        new.mkdir()
        with attachment.lock:
            _write(attachment, tokenizer, new, source, notes)
        if calibration is not None:
            calibration.write(new / CALIBRATION_FILE)
        if path.exists():
            path.rename(work / "old")
        new.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    attachment: Attachment, tokenizer: Any, path: Path, source: tuple[str, str | None] | None, notes: dict[str, Any]
) -> None:
    from safetensors.torch import save_file

    contents: dict[str, Any] = {"format_version": FORMAT_VERSION, "gist_config": attachment.config.to_dict(), **notes}
    if source is not None:
        contents["base_model_name_or_path"], contents["base_revision"] = source
        contents["base_fingerprint"] = base_fingerprint(attachment.model)
    else:
        _write_base(attachment.model, path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in attachment.parameters().items()}
    save_file(tensors, path / ADAPTER_FILE, metadata={"format": "pt"})
    (path / CONFIG_FILE).write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_base(model: Any, path: Path) -> None:
    """Write the base alone: no gist weights among the tensors, no foreign settings or code in config.json."""
    state = {name: value for name, value in model.state_dict().items() if f".{PREFIX}_" not in name}
    model.save_pretrained(path, state_dict=state)
    file = path / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    foreign = ("auto_map", *(key for key in config if key.startswith(tuple(f"{family}_" for family in FAMILIES))))
    file.write_text(
        json.dumps({key: value for key, value in config.items() if key not in foreign}, indent=2) + "\n",
        encoding="utf-8",
    )
