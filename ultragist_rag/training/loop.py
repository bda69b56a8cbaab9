"""The training loop: a curriculum of stages over one model with gist modules.

Is        optimiser steps through accelerate, with checkpoints, progress and a metrics file.
Flow      config, setup, batches, objectives, checkpoint -> [loop] -> cli.
Paper     UltraGist, arXiv 2405.16635, section 3.3.
Change    how batches are grouped, what is logged.
Not here  what a batch's loss is -> objectives.py; schedules -> config.py.
Holds     batch n depends on the config and n alone, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.attach import Attachment
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.checkpoint import load_state, save_state
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.objectives import OBJECTIVES, Loss
from ultragist_rag.training.optim import Muon
from ultragist_rag.training.samples import Recipe
from ultragist_rag.training.setup import (
    Source,
    checkpoint_layers,
    copy_base_into_gists,
    make_attachment,
    make_source,
    make_tokenizer,
)

__all__ = ["TrainReport", "Trainer"]

_GROUP = 8  # batches drawn together and sorted by length, so that rows of a batch are alike
_TRIES = 50

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a dry run finds: parameters in all and trained, steps, and tokens per stage, about."""

    n_parameters: int
    n_trained: int
    n_steps: int
    n_tokens: int


class _Objective(nn.Module):
    """The loss as a module's forward, so that accelerate's wrappers (DDP, FSDP) see one call."""

    def __init__(self, attachment: Attachment, lead: int | None) -> None:
        super().__init__()
        self.model = attachment.model
        self._attachment = attachment
        self._lead = lead

    def forward(self, mode: str, rows: Sequence[Row], stage: Stage, seed: str) -> tuple[Tensor, Loss]:
        """Loss of one batch."""
        loss = OBJECTIVES[mode](self._attachment, rows, self._lead, stage, random.Random(seed))
        return loss.value, loss


class Trainer:
    """Trains what a config describes, from its start or from the last checkpoint.

    Args:
        config: The run.

    Raises:
        TrainingError: If data or base are missing or do not fit.
    """

    def __init__(self, config: TrainConfig) -> None:
        from accelerate import Accelerator

        self.config = config
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision)
        self.source: Source = make_source(config)
        self.tokenizer = make_tokenizer(config, self.source)
        self.rows = RowMaker(self.tokenizer, self.tokenizer.eos_token)
        self.attachment = make_attachment(config, self.tokenizer)
        model = self.attachment.model
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        self._group: tuple[tuple[str, int], list[list[Row]]] | None = None
        gist = {id(parameter) for parameter in self.attachment.parameters().values()}
        for parameter in model.parameters():
            parameter.requires_grad_(config.train_base or id(parameter) in gist)
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def dry_run(self) -> TrainReport:
        """Count parameters and tokens, and run one batch of every stage without a step."""
        lead = self._lead()
        objective = _Objective(self.attachment, lead)
        for stage in self.config.stages:
            for mode in stage.modes:
                value, _ = objective(mode, self.batch(stage, 0)[:2], stage, f"{stage.name}-dry")
                value.backward()
        self.attachment.model.zero_grad(set_to_none=True)
        model = self.attachment.model
        return TrainReport(
            n_parameters=sum(p.numel() for p in model.parameters()),
            n_trained=sum(p.numel() for p in self.weights.values()),
            n_steps=self.config.n_steps,
            n_tokens=sum(stage.steps * stage.tokens for stage in self.config.stages),
        )

    def run(self, stop_after: int | None = None) -> Path:
        """Train to the end (or for some steps more), then save the model; return its folder."""
        from tqdm import tqdm

        optimizers = self._optimizers()
        state, note = self.config.output / "state", self._note()
        start = load_state(state, self.weights, optimizers, note)
        self.config.output.mkdir(parents=True, exist_ok=True)
        objective, *prepared = self.accelerator.prepare(_Objective(self.attachment, self._lead()), *optimizers)
        objective.train()
        end = self.config.n_steps if stop_after is None else min(self.config.n_steps, start + stop_after)
        self._cut_metrics(start)
        with (self.config.output / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            for step in tqdm(range(start, end), initial=start, total=self.config.n_steps, desc="train", unit="step"):
                entry = self._step(objective, prepared, step)
                metrics.write(json.dumps(entry) + "\n")
                metrics.flush()
                if (step + 1) % self.config.checkpoint_every == 0 or step + 1 == end:
                    save_state(state, step + 1, self.weights, optimizers, note)
        return self.save() if end == self.config.n_steps else state

    def save(self) -> Path:
        """Save the result in bfloat16: a Hugging Face folder with its gist adapter, or the adapter of a frozen base."""
        from ultragist_rag.engine import UltraGist

        config, folder = self.config, self.config.output / "model"
        self.attachment.model.to(torch.bfloat16)
        composed = any("independent" in stage.modes for stage in config.stages)
        source = (config.base, config.revision) if config.base else None
        engine = UltraGist(self.attachment, self.tokenizer, trained_composed=composed, source=source)
        engine.save_pretrained(folder, adapter_only=not config.train_base)
        return folder

    def _save_base(self) -> None:
        """Keep the model as it is before gist training: the denominator of retention."""
        gists = self.attachment.parameters()
        weights = {name: value for name, value in self.attachment.model.state_dict().items() if name not in gists}
        self.attachment.model.save_pretrained(self.config.output / "base", state_dict=weights)
        self.tokenizer.save_pretrained(self.config.output / "base")

    def batch(self, stage: Stage, number: int) -> list[Row]:
        """Rows of one batch of a stage; batches are drawn in groups and sorted by length."""
        key = (stage.name, number // _GROUP)
        if self._group is None or self._group[0] != key:
            self._group = (key, self._draw_group(stage, key))
        return self._group[1][number % _GROUP]

    def _draw_group(self, stage: Stage, key: tuple[str, int]) -> list[list[Row]]:
        rng = random.Random(f"{self.config.seed}-{key}")
        recipe = Recipe(stage.kinds, stage.documents, stage.lines, stage.questions, stage.max_chars)
        rows: list[Row] = []
        total = misses = 0
        while total < stage.tokens * _GROUP:
            row = self.rows.row(self.source.draw(recipe, rng), rng)
            if row.n_tokens > self.config.longest or not any(row.weights) or not all(row.documents):
                misses += 1
                if misses > _TRIES * (len(rows) + 1):
                    raise TrainingError(f"stage {stage.name} draws no sample of at most {self.config.longest} tokens.")
                continue
            rows.append(row)
            total += row.n_tokens
        rows.sort(key=lambda row: row.n_tokens)
        batches: list[list[Row]] = [[] for _ in range(_GROUP)]
        done = 0
        for row in rows:
            batches[min(_GROUP - 1, done * _GROUP // total)].append(row)
            done += row.n_tokens
        batches = [batch or rows[-1:] for batch in batches]
        rng.shuffle(batches)
        return batches

    def _step(self, objective: Any, optimizers: Sequence[Any], step: int) -> dict[str, Any]:
        began = time.perf_counter()
        stage, number = self.config.stage_at(step)
        seed = f"{self.config.seed}-{stage.name}-{number}"
        mode = random.Random(seed).choices(list(stage.modes), weights=list(stage.modes.values()))[0]
        if step == self.config.first_gist_step and step and self.config.train_base:
            copy_base_into_gists(self.attachment)
            self._save_base()
        rows = self.batch(stage, number)
        lr = self.config.lr_at(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        with self.accelerator.autocast():
            value, loss = objective(mode, rows, stage, seed)
        if not torch.isfinite(value):
            raise TrainingError(f"the loss is {value.item()} at step {step}. Lower lr, or check the data.")
        self.accelerator.backward(value)
        norm = float(self.accelerator.clip_grad_norm_(list(self.weights.values()), self.config.clip))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = sum(row.n_tokens for row in rows)
        return {
            "step": step,
            "stage": stage.name,
            "mode": mode,
            "loss": round(value.item(), 5),
            "answer": round(loss.answer, 5),
            "correct": round(loss.correct, 4),
            "norm": round(norm, 4),
            "lr": lr,
            "tokens": tokens,
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        is_matrix: Mapping[str, bool] = {n: p.dim() == 2 and "embed" not in n for n, p in self.weights.items()}
        use_muon = self.config.optimizer == "muon"
        matrices = [p for name, p in self.weights.items() if is_matrix[name] and use_muon]
        others = [p for name, p in self.weights.items() if not (is_matrix[name] and use_muon)]
        decay, lr = self.config.weight_decay, self.config.lr
        made: list[torch.optim.Optimizer] = [Muon(matrices, lr=lr, weight_decay=decay)] if matrices else []
        return [*made, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0 if use_muon else decay)]

    def _lead(self) -> int | None:
        return find_lead_token(self.attachment.config.lead_token, self.tokenizer)

    def _note(self) -> str:
        return self.config.model_dump_json(exclude={"output", "data", "checkpoint_every", "stages"})

    def _cut_metrics(self, start: int) -> None:
        """Drop lines of steps that will be done again."""
        path = self.config.output / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()[:start]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
