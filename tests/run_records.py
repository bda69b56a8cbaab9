"""Run folders with made-up records: seeded, small, and with everything that a runner can write."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METHODS = ("full", "closed", "gist", "joint", "gist+codes", "truncate", "bm25", "kvpress:snapkv")
RATIOS = (4, 8, 16, 32)
SLOT = 768
QUALITY = {"closed": 0.1, "gist": 0.93, "joint": 0.9, "gist+codes": 0.95, "truncate": 0.5, "bm25": 0.8}
QUALITY["kvpress:snapkv"] = 0.97
TASKS: dict[str, dict[str, Any]] = {
    "rag/invented": {"metric": "subem", "kind": "generate", "lm_needed": False, "source": ""},
    "rag/nq": {"metric": "subem", "kind": "generate", "lm_needed": False, "source": "a published set, CC BY"},
    "icl/labels": {"metric": "accuracy", "kind": "choose", "lm_needed": False, "source": ""},
    "recall/uuid": {"metric": "subem", "kind": "generate", "lm_needed": True, "source": ""},
    "chat/sessions": {"metric": "f1", "kind": "generate", "lm_needed": False, "source": ""},
    "perplexity/text": {"metric": "ppl", "kind": "perplexity", "lm_needed": False, "source": ""},
    "failures/cut": {"metric": "subem", "kind": "generate", "lm_needed": False, "source": ""},
    "failures/position": {"metric": "", "kind": "extra", "lm_needed": False, "source": ""},
}
LEVEL = {"recall/uuid": 0.0, "icl/labels": 0.55}
GROUPS = {"chat/sessions": ("one hop", "several hops"), "failures/cut": ("60", "64"), "failures/position": ("bin 00",)}
Row = dict[str, Any]
Names = tuple[str, ...]


def make_run(
    folder: Path, *, n: int = 12, seed: int = 0, budget: int | None = None, only: Names = tuple(TASKS), **facts: Any
) -> Path:
    """Write a run of `n` samples for each task."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(make_rows(n, seed, budget, only))
    write_rows(folder, rows)
    tasks = {name: {**TASKS[name], "suite": name.partition("/")[0], "n_samples": n} for name in only}
    about = {
        "model": "bundled",
        "fingerprint": "0f3a",
        "command": "ultragist-rag eval --suite all",
        "date": "2026-01-02",
        "device": "CPU, 2 cores",
        "versions": {"torch": "2.13"},
        "n_parameters": 4_200_000,
        "n_positions": 2048,
        "bytes_per_slot": SLOT,
        "settings": {"suites": ["all"], "ratios": RATIOS, "budget": budget, "seed": seed},
        "tasks": tasks,
        "left_out": ["code/repo is left out: no file was found."],
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def write_rows(folder: Path, rows: list[Row]) -> None:
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_rows(n: int, seed: int = 0, budget: int | None = None, only: Names = tuple(TASKS)) -> Iterator[Row]:
    random_ = random.Random(seed)
    for task, one in ((name, TASKS[name]) for name in only):
        for number in range(n):
            groups = GROUPS.get(task, ("",))
            head = {"task": task, "id": str(number), "group": groups[number % len(groups)]}
            tokens, luck = random_.randint(300, 900), random_.random()
            for method in METHODS:
                if one["kind"] == "extra" and method not in ("full", "gist"):
                    continue
                cut = method not in ("full", "closed")
                for ratio in (RATIOS if budget is None else (None,)) if cut else (None,):
                    row = {**head, "method": method, "ratio": ratio, "budget": budget if cut else None}
                    if (method, number) == ("joint", 1):
                        yield {**row, "skipped": "the prompt takes 3000 positions, but there are 2048."}
                        continue
                    yield {**row, **_measured(one, method, ratio, tokens, luck, LEVEL.get(task, 0.85), random_)}


def _measured(
    task: Row, method: str, ratio: int | None, tokens: int, luck: float, level: float, random_: random.Random
) -> Row:
    by = ratio or (1 if method == "full" else 8)
    slots = {"full": tokens, "closed": 0}.get(method, math.ceil(tokens / by))
    level *= QUALITY.get(method, 1.0) / (1 + 0.01 * (by - 1))
    right = float(0.7 * luck + 0.3 * random_.random() < level)
    scores = {"nll": 2.0 + 0.5 * luck + (1 - level), "n": random_.randint(50, 90)}
    if task["kind"] != "perplexity" and task["metric"]:
        scores = {task["metric"]: right, "other": right / 2}
    seconds = {"compress": 0.001 * tokens, "first_token": 0.002 + 1e-5 * slots * (1 + random_.random()), "total": 0.1}
    said = "Ulaanbaatar" if right else random_.choice(["Lome", "I do not know", "90 m"])
    return {
        "tokens": tokens,
        "slots": slots,
        "bytes": slots * SLOT,
        "prediction": said,
        "scores": scores,
        "seconds": seconds,
    }
