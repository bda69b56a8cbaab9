"""Train variants of one run on equal data, and score each on equal questions.

Is        a YAML file of one run and its variants; one folder for each variant and seed; one record of them all.
Flow      config, loop, evaluation.forced -> [ablation] -> cli_ablate; evaluation/ablation_page.py reads the record.
Paper     arXiv 2412.17483: architectures (section 2), autoencoding and token importance (section 5).
Change    what a variant may set, what is asked of it.
Not here  intervals, table and plot -> evaluation/ablation_page.py.
Holds     equal seeds draw equal samples for every variant with the same stages; a finished variant is not run again.
"""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import TrainingError
from ultragist_rag.evaluation.environment import describe
from ultragist_rag.evaluation.forced import Forced, Method, score_rows
from ultragist_rag.evaluation.heldout import corpus_cases
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.config import TrainConfig, problems
from ultragist_rag.training.loop import Trainer
from ultragist_rag.training.samples import Recipe, Sample
from ultragist_rag.training.setup import Source, make_source

__all__ = ["AblationPlan", "Asked", "Variant", "run_ablation"]

HELD_OUT = "held-out"
"""Suite of the questions about countries that training never saw."""

_KEPT = ("name", "seed", "steps", "tokens", "cells")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Strict):
    """What one variant sets differently: keys of the run, of its gists, of each of its stages.

    `against` names the variant that it is compared with; None for the first of the plan.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    about: str
    run: dict[str, Any] = {}
    gist: dict[str, Any] = {}
    stage: dict[str, Any] = {}
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    against: str | None = None


class Asked(_Strict):
    """What every variant is asked: rows of each kind, which no run draws with its own seed, and held-out countries."""

    kinds: tuple[str, ...] = ("labels", "profile", "needles")
    rows: int = Field(default=8, gt=0)
    lines: tuple[int, int] = (3, 6)
    questions: int = Field(default=10, gt=0)
    seed: int = 1001
    ratios: tuple[int, ...] = Field(default=(2, 4, 8), min_length=1)
    window: int = Field(default=128, gt=0)
    corpus: Path | None = None
    corpus_questions: Path | None = None


class AblationPlan(_Strict):
    """A run, its variants, and what they are asked; the first variant is what others are held against by default.

    `about` says in a sentence what the base is.
    """

    about: str = ""
    run: dict[str, Any]
    asked: Asked = Asked()
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> AblationPlan:
        names = [variant.name for variant in self.variants]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two variants are called {twice[0]!r}: their folders would be one")
        unknown = sorted({variant.against for variant in self.variants if variant.against} - set(names))
        if unknown:
            raise ValueError(f"against is {unknown[0]!r}, but the variants are {', '.join(names)}")
        return self

    @classmethod
    def read(cls, path: Path) -> AblationPlan:
        """Read a YAML file.

        Raises:
            TrainingError: If the file is missing, is no YAML, or a setting is wrong.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainingError(f"{path} cannot be read as YAML: {error}") from error
        except ValidationError as error:
            raise TrainingError(f"{path} is not a valid plan of an ablation: {problems(error)}") from error

    def config(self, variant: Variant, seed: int, **places: Any) -> TrainConfig:
        """The training config of a variant.

        Args:
            variant: The variant.
            seed: Of weights and draws.
            places: Keys that are no part of the plan: `output`, `data`, `base`; None leaves the plan's.

        Raises:
            TrainingError: If a setting is wrong.
        """
        merged = {**self.run, **variant.run, "seed": seed}
        merged |= {key: value for key, value in places.items() if value is not None}
        merged["gist"] = {**merged.get("gist", {}), **variant.gist}
        merged["stages"] = [{**stage, **variant.stage} for stage in merged.get("stages", ())]
        try:
            return TrainConfig(**merged)
        except ValidationError as error:
            raise TrainingError(f"variant {variant.name} is not a valid training config: {problems(error)}") from error


def run_ablation(
    plan: AblationPlan, data: Path, base: str, output: Path, *, deadline: float = float("inf"), command: str = ""
) -> Path:
    """Train and score every variant, first seeds first; what is finished is skipped, what was broken goes on.

    Args:
        plan: What is run.
        data: Data folder.
        base: Folder or hub id that each variant starts from.
        output: Folder of the runs.
        deadline: Begin no run, and stop the one in progress, when `time.monotonic()` reaches this.
        command: What to write as the command.

    Returns:
        The record of all finished runs, `ablation.json` in the folder of the runs.

    Raises:
        TrainingError: If a setting of any variant is wrong, or data or base are missing.
    """
    runs = _runs(plan)
    configs = [
        plan.config(variant, seed, data=data, base=base, output=output / f"{variant.name}-{seed}")
        for variant, seed in runs
    ]
    asked = _Questions(plan, configs[0])
    finished = [_base_run(base, output, asked)]
    for (variant, seed), config in zip(runs, configs, strict=True):
        path = config.output / "scores.json"
        if not path.is_file():
            if time.monotonic() >= deadline or not _train(config, deadline):
                continue
            _write(path, _scored(plan, config, asked))
        found = json.loads(path.read_text(encoding="utf-8"))
        finished.append({"name": variant.name, "seed": seed, **found})
    _write_record(output / "ablation.json", plan, finished, command)
    return output / "ablation.json"


def _runs(plan: AblationPlan) -> list[tuple[Variant, int]]:
    """Every variant's first seed, then every variant's second, and so on."""
    most = max(len(variant.seeds) for variant in plan.variants)
    return [(v, v.seeds[place]) for place in range(most) for v in plan.variants if place < len(v.seeds)]


def _train(config: TrainConfig, deadline: float) -> bool:
    return Trainer(config).run(deadline=deadline).name == "model"


class _Questions:
    """The rows that every variant is asked, by suite."""

    def __init__(self, plan: AblationPlan, config: TrainConfig) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(config.base, revision=config.revision)
        self.rows = _rows(plan.asked, make_source(config), RowMaker(tokenizer, tokenizer.eos_token))
        self._window = plan.asked.window

    def scores(self, engine: UltraGist, method: Method, ratio: int | None = None) -> list[dict[str, Any]]:
        """Counts of every row of each suite."""
        lead = find_lead_token(engine.config.lead_token, engine.tokenizer)
        found = []
        for suite, rows in self.rows.items():
            gist = None if ratio is None else (ratio, self._window)
            counts = score_rows(engine.attachment, rows, lead, method, gist)
            found.append({"suite": suite, "method": method, "ratio": ratio, **_columns(counts)})
        return found


def _rows(asked: Asked, source: Source, maker: RowMaker) -> dict[str, list[Row]]:
    found = {}
    for kind in asked.kinds:
        rng = random.Random(f"{asked.seed}-{kind}")
        recipe = Recipe({kind: 1.0}, (1, 1), asked.lines, asked.questions)
        rows: list[Row] = []
        while len(rows) < asked.rows:
            sample = source.draw(recipe, rng)
            if sample.pairs:
                rows.append(maker.row(sample, rng))
        found[kind] = rows
    if asked.corpus is not None and asked.corpus_questions is not None:
        rng = random.Random(f"{asked.seed}-{HELD_OUT}")
        samples = _held_out(asked.corpus, asked.corpus_questions)
        found[HELD_OUT] = [maker.row(sample, rng) for sample in rng.sample(samples, min(asked.rows, len(samples)))]
    return found


def _held_out(corpus: Path, questions: Path) -> list[Sample]:
    """The passages of held-out countries that answer more than one question, with all they answer."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for case in corpus_cases(corpus, questions):
        asked.setdefault(case.documents[case.gold], []).append((case.question, case.answers[0]))
    return [Sample((text,), tuple(pairs)) for text, pairs in asked.items() if len(pairs) > 1]


def _columns(counts: Sequence[Forced]) -> dict[str, list[int | float]]:
    return {name: [getattr(one, name) for one in counts] for name in Forced.__slots__}


def _base_run(base: str, output: Path, asked: _Questions) -> dict[str, Any]:
    """What the base itself makes of the questions, from the text and without it."""
    path = output / "base" / "scores.json"
    if not path.is_file():
        engine = _load(base)
        cells = [*asked.scores(engine, "full"), *asked.scores(engine, "closed")]
        _write(path, {"steps": 0, "tokens": 0, "facts": describe(engine), "cells": cells})
    found = json.loads(path.read_text(encoding="utf-8"))
    return {"name": "base", "seed": 0, **found}


def _scored(plan: AblationPlan, config: TrainConfig, asked: _Questions) -> dict[str, Any]:
    engine = _load(str(config.output / "model"))
    cells = asked.scores(engine, "full")
    for ratio in plan.asked.ratios:
        cells += asked.scores(engine, "gist", ratio)
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "steps": len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "cells": cells,
    }


def _load(name: str) -> UltraGist:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*untrained.*")
        return UltraGist.from_pretrained(name, dtype=torch.float32)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record) + "\n", encoding="utf-8")
    fresh.replace(path)


def _write_record(path: Path, plan: AblationPlan, runs: Sequence[Mapping[str, Any]], command: str) -> None:
    facts = {name: runs[0]["facts"][name] for name in ("device", "versions", "n_parameters", "dtype")}
    about = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        **facts,
        "plan": plan.model_dump(mode="json"),
    }
    lines = ",\n".join("  " + json.dumps({key: run[key] for key in _KEPT}) for run in runs)
    text = json.dumps(about, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n ]\n}}\n'
    path.write_text(text, encoding="utf-8")
