"""Start other compressors in an environment of their own, and read what they answer.

Is        finding that environment, writing requests, running `run.py` there, reading records.
Flow      errors, modeling.checkpoint -> [launch] -> methods, runner.
Change    which peers there are, where their environment is looked for.
Not here  what is done with a request -> run.py; what is asked -> ../runner.py.
Holds     nothing of the peers is imported here; one record per request, in the order of the requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ultragist_rag.errors import InputError, UltraGistError

__all__ = ["ENVIRONMENT", "PEERS", "PYTHON_VARIABLE", "find_peers_python", "is_peer", "model_folder", "run_peers"]

PEERS: tuple[str, ...] = (
    "llmlingua",
    "kvpress:snapkv",
    "kvpress:expected_attention",
    "kvpress:streaming_llm",
    "kvpress:knorm",
)
"""Methods of other packages."""

ENVIRONMENT, PYTHON_VARIABLE = ".venv-peers", "ULTRAGIST_PEERS_PYTHON"
"""Folder of their environment, and the variable that names another interpreter."""

_SCRIPT = Path(__file__).with_name("run.py")
_INTERPRETER = "Scripts/python.exe" if os.name == "nt" else "bin/python"
_LAST = 2000
"""Characters of what a failing run wrote that the error repeats."""

Record = dict[str, Any]


def is_peer(name: str) -> bool:
    """Tell whether a method is of another package."""
    return name in PEERS


def find_peers_python() -> Path:
    """Find the interpreter that has the peers.

    Returns:
        Its path.

    Raises:
        InputError: If there is none.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else Path.cwd() / ENVIRONMENT / _INTERPRETER
    if python.is_file():
        return python.absolute()
    where = (
        f"{PYTHON_VARIABLE} is {named!r}, which is no file" if named else f"there is no {ENVIRONMENT} in {Path.cwd()}"
    )
    raise InputError(
        f"{where}: the methods {', '.join(PEERS)} need an environment of their own. Run `make peers` in a checkout of "
        f"the project, or make one by pip (docs/evaluation.md), and set {PYTHON_VARIABLE} to its Python."
    )


def model_folder(name: str, revision: str | None = None) -> Path:
    """Find the folder with the base weights of a checkpoint.

    Args:
        name: As `UltraGist.from_pretrained` takes it: `bundled`, a folder, or the id of a model fetched before.
        revision: Of a fetched model.

    Returns:
        A folder that stock transformers can load; for an adapter that of its base.

    Raises:
        InputError: If it is not on this machine.
        CheckpointError: If the settings of an adapter are damaged.
    """
    from ultragist_rag.modeling.checkpoint import CONFIG_FILE, read_config

    if name == "bundled":
        return Path(str(files("ultragist_rag") / "bundled"))
    folder = Path(name) if Path(name).is_dir() else _fetched(name, revision)
    own = read_config(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    base = own.get("base_model_name_or_path")
    return model_folder(base, own.get("base_revision")) if base else folder


def run_peers(
    folder: Path, requests: Iterable[Mapping[str, Any]], output: Path, dtype: str, device: str = "auto"
) -> Iterator[Record]:
    """Ask peers, each request once: those whose records are in the output already are not asked again.

    Args:
        folder: With the base model, as stock transformers loads it.
        requests: What `run.py` reads.
        output: Where records go, one JSON object a line; the requests lie beside it meanwhile.
        dtype: Of the weights, such as `float32`.
        device: Where to compute; `auto` takes a GPU if there is one.

    Yields:
        The record of each request, in order.

    Raises:
        InputError: If a method is no peer, or there is no environment for peers.
        UltraGistError: If the run there fails.
    """
    asked = [dict(request) for request in requests]
    unknown = [request["method"] for request in asked if not is_peer(request["method"])]
    if unknown:
        raise InputError(f"method {unknown[0]!r} is no peer. There are {', '.join(PEERS)}.")
    python = find_peers_python()
    samples = output.with_suffix(".requests.jsonl")
    lines = [json.dumps(request, ensure_ascii=False) + "\n" for request in asked]
    samples.write_text("".join(lines), encoding="utf-8", newline="\n")
    # -I: neither PYTHONPATH nor the folder of the script may bring in packages of this environment.
    command = [str(python), "-I", str(_SCRIPT), "--model", str(folder), "--samples", str(samples)]
    _run([*command, "--output", str(output), "--dtype", dtype, "--device", device])
    records = {_key(record): record for record in map(json.loads, output.read_bytes().splitlines())}
    for request in asked:
        if _key(request) not in records:
            raise UltraGistError(f"{output} has no record of {_key(request)}: remove the file and run again.")
        yield records[_key(request)]
    samples.unlink()


def _run(command: list[str]) -> None:
    """Run a command, show what it writes, and repeat the end of that if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    written = ""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as process:
        try:
            while process.stdout is not None and (chunk := process.stdout.read(4096)):
                text = chunk.decode("utf-8", "replace")
                sys.stderr.write(text)
                sys.stderr.flush()
                written = (written + text)[-_LAST:]
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise UltraGistError(
            f"peers stopped with status {process.returncode}; what they had answered is kept. Their last lines:\n"
            f"{written.strip()}"
        )


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise InputError(f"{name!r} is neither a folder nor a fetched model: peers need its folder.") from error


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("task", "id", "method", "ratio", "budget"))
