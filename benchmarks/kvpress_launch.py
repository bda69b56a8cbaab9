"""Start `kvpress_decode.py` in the environment of the peers, and read what it measured.

Is        a command line, its last line as seconds by name, and its errors in words.
Flow      suite -> [kvpress_launch] -> suites.
Not here  what is measured there -> kvpress_decode.py; the environment -> ultragist_rag/evaluation/peers.
Holds     nothing of kvpress is imported here.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.suite import Bench
from ultragist_rag.errors import UltraGistError

__all__ = ["decode_there"]

_SCRIPT = Path(__file__).with_name("kvpress_decode.py")


def decode_there(bench: Bench, asked: dict[str, Any]) -> dict[str, list[float]]:
    """Measure kvpress with a model of the same shape and random weights.

    Args:
        bench: Has shape, number format and device.
        asked: What else `kvpress_decode.measure` wants to know.

    Returns:
        Seconds in each round, by name.

    Raises:
        UltraGistError: If there is no such environment, or it fails.
    """
    try:
        from ultragist_rag.evaluation.peers import find_peers_python  # needs more packages than the rest
    except ImportError as error:
        raise UltraGistError(f"{error}. Install the package with its dependencies.") from None
    about = {
        "config": bench.engine.model.config.to_dict(),
        "dtype": bench.machine.dtype,
        "device": bench.device.type,
        "threads": torch.get_num_threads(),
    }
    # -I: no package of this environment may come in.
    command = [str(find_peers_python()), "-I", str(_SCRIPT), json.dumps(about | asked)]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UltraGistError(f"it stopped with status {done.returncode}: {last}")
    times: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return times
