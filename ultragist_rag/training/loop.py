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
import math
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
from ultragist_rag.training.batches import RowMaker
from ultragist_rag.training.checkpoint import load_state, save_state
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.drawing import Batch, Drawn
from ultragist_rag.training.objectives import OBJECTIVES, Loss
from ultragist_rag.training.optim import Muon
from ultragist_rag.training.planned import planned_loss
from ultragist_rag.training.setup import (
    Source,
    checkpoint_layers,
    copy_base_into_gists,
    make_attachment,
    make_source,
    make_tokenizer,
)

__all__ = ["TrainReport", "Trainer"]

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

    def forward(self, batch: Batch) -> tuple[Tensor, Loss]:
        """Loss of one batch."""
        if batch.planned is not None:
            loss, _ = planned_loss(self._attachment, batch.planned.to(self._attachment.device), batch.stage)
        else:
            rng = random.Random(batch.seed)
            loss = OBJECTIVES[batch.mode](self._attachment, batch.rows, self._lead, batch.stage, rng)
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
        self.drawn = Drawn(config, self.source, self.rows, self.attachment, self._lead())
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
                value, _ = objective(self.drawn.batch(stage, 0, mode))
                value.backward()
        self.attachment.model.zero_grad(set_to_none=True)
        model = self.attachment.model
        return TrainReport(
            n_parameters=sum(p.numel() for p in model.parameters()),
            n_trained=sum(p.numel() for p in self.weights.values()),
            n_steps=self.config.n_steps,
            n_tokens=sum(stage.steps * stage.tokens for stage in self.config.stages),
        )

    def run(self, stop_after: int | None = None, deadline: float = math.inf) -> Path:
        """Train to the end, then save the model; return its folder.

        Args:
            stop_after: Stop after so many steps more; the folder returned is that of the state.
            deadline: Stop when `time.monotonic()` reaches this.
        """
        from tqdm import tqdm

        optimizers = self._optimizers()
        state, note = self.config.output / "state", self._note()
        start = load_state(state, self.weights, optimizers, note)
        self.config.output.mkdir(parents=True, exist_ok=True)
        objective, *prepared = self.accelerator.prepare(_Objective(self.attachment, self._lead()), *optimizers)
        objective.train()
        end = self.config.n_steps if stop_after is None else min(self.config.n_steps, start + stop_after)
        self._cut_metrics(start)
        waiting: tuple[Any, ...] | None = None
        batches = self.drawn.batches(start, end)
        with (self.config.output / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            for step in tqdm(
                range(start, end), initial=start, total=self.config.n_steps, desc="train", unit="step", mininterval=1.0
            ):
                began = time.perf_counter()
                batch = next(batches)
                done = self._step(objective, prepared, step, batch)
                is_late = time.monotonic() >= deadline
                saves = (step + 1) % self.config.checkpoint_every == 0 or step + 1 == end or is_late
                for late in filter(None, (waiting, (step, batch, done, began) if saves else None)):
                    metrics.write(json.dumps(self._entry(*late)) + "\n")
                waiting = None if saves else (step, batch, done, began)
                if saves:
                    metrics.flush()
                    save_state(state, step + 1, self.weights, optimizers, note)
                if is_late:
                    return state
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

    def _step(self, objective: Any, optimizers: Sequence[Any], step: int, batch: Batch) -> tuple[Loss, Tensor]:
        if step == self.config.first_gist_step and step and self.config.train_base:
            copy_base_into_gists(self.attachment)
            self._save_base()
        lr = self.config.lr_at(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        with self.accelerator.autocast():
            value, loss = objective(batch)
        self.accelerator.backward(value)
        norm = self.accelerator.clip_grad_norm_(list(self.weights.values()), self.config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _entry(self, step: int, batch: Batch, done: tuple[Loss, Tensor], began: float) -> dict[str, Any]:
        """A line of metrics; asking for its numbers waits for the device, so this is done one step late."""
        loss, norm = done
        value, answer, correct, size = torch.stack(
            [part.detach().float().to(loss.value.device) for part in (loss.value, loss.answer, loss.correct, norm)]
        ).tolist()
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {step}. Lower lr, or check the data.")
        return {
            "step": step,
            "stage": batch.stage.name,
            "mode": batch.mode,
            "loss": round(value, 5),
            "answer": round(answer, 5),
            "correct": round(correct, 4),
            "norm": round(size, 4),
            "lr": self.config.lr_at(step),
            "tokens": batch.n_tokens,
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
        return self.config.model_dump_json(exclude={"output", "data", "checkpoint_every", "workers", "stages"})

    def _cut_metrics(self, start: int) -> None:
        """Drop lines of steps that will be done again."""
        path = self.config.output / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()[:start]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
