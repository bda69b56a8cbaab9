"""The training loop: a curriculum of stages over one model with gist modules.

Is        optimiser steps through accelerate, with checkpoints, progress and a metrics file.
Flow      config, setup, drawing, combined, checkpoint, dry_run -> [loop] -> cli.
Paper     UltraGist, arXiv 2405.16635, section 3.3.
Change    what is logged.
Not here  which batches there are -> drawing.py; what a batch's loss is -> combined.py; schedules -> config.py; what
          several processes need -> processes.py.
Holds     batch n depends on the config and n alone, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.training.autoencoding import GistDecoder
from ultragist_rag.training.batches import RowMaker
from ultragist_rag.training.checkpoint import load_state, mix_in, save_state, save_weights
from ultragist_rag.training.combined import Combined
from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.drawing import Batch, Drawn
from ultragist_rag.training.dry_run import TrainReport, is_matrix, measure
from ultragist_rag.training.optim import Muon
from ultragist_rag.training.planned import in_one_pass
from ultragist_rag.training.processes import check_sharding, drop_untouched, share_of, unshard, whole
from ultragist_rag.training.setup import (
    Source,
    checkpoint_layers,
    copy_base_into_gists,
    make_attachment,
    make_source,
    make_tokenizer,
)

__all__ = ["TrainReport", "Trainer"]


@dataclass(frozen=True, slots=True)
class _Told:
    """What a step tells: its batches, and loss, answer, correct, autoencoding and norm as one tensor."""

    step: int
    batches: list[Batch]
    numbers: Tensor


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
        check_sharding(self.accelerator)
        self.source: Source = make_source(config)
        with self.accelerator.main_process_first():
            self.tokenizer = make_tokenizer(config, self.source)
        self.rows = RowMaker(self.tokenizer, self.tokenizer.eos_token)
        self.attachment, self._source_bias = make_attachment(config, self.tokenizer)
        _check_teachers(config, self.attachment.config)
        model = self.attachment.model
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        process = (self.accelerator.process_index, self.accelerator.num_processes)
        self.drawn = Drawn(config, self.source, self.rows, self.attachment, self._lead(), process)
        gist = {id(parameter) for parameter in self.attachment.parameters().values()}
        for parameter in model.parameters():
            parameter.requires_grad_(config.train_base or id(parameter) in gist)
        decoder = GistDecoder(self.attachment, config.autoencoding_gists, config.seed) if config.autoencodes else None
        several = self.accelerator.num_processes > 1
        self.objective = Combined(self.attachment, self._lead(), decoder, several=several)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return self.objective.trained()

    def dry_run(self) -> TrainReport:
        """Count parameters and tokens, and measure one batch of every stage and mode without a step."""
        self.objective.to(self.accelerator.device).train()
        return measure(self.config, self.objective, self.drawn, self.accelerator.autocast)

    def run(self, stop_after: int | None = None, deadline: float = math.inf) -> Path:
        """Train to the end, then save the model; return its folder.

        Args:
            stop_after: Stop after so many steps more; the folder returned is that of the state.
            deadline: Stop when `time.monotonic()` reaches this, likewise.
        """
        state, note, main = self.config.output / "state", self._note(), self.accelerator.is_main_process
        objective, *optimizers = self.accelerator.prepare(self.objective, *self._optimizers())
        start = load_state(state, self.weights, optimizers, note)
        self._check_before(start)
        self.config.output.mkdir(parents=True, exist_ok=True)
        objective.train()
        end = self.config.n_steps if stop_after is None else min(self.config.n_steps, start + stop_after)
        if main:
            self._cut_metrics(start)
        batches = self.drawn.batches(start, end)
        waiting: list[_Told] = []
        now = time.perf_counter()
        for step in self._bar(start, end):
            waiting.append(self._step(objective, optimizers, step, batches))
            is_late = time.monotonic() >= deadline
            saves = (step + 1) % self.config.checkpoint_every == 0 or step + 1 == end or is_late
            while len(waiting) > (0 if saves else 1):
                last, now = now, time.perf_counter()
                self._write(self._entry(waiting.pop(0), now - last))
            if saves:
                save_state(state, step + 1, self.weights, optimizers, note, write=main)
            if is_late:
                return state
        self.accelerator.wait_for_everyone()
        return self.save() if end == self.config.n_steps else state

    def _bar(self, start: int, end: int) -> Iterable[int]:
        from tqdm import tqdm

        main = self.accelerator.is_main_process
        steps: Iterable[int] = tqdm(
            range(start, end), "train", initial=start, total=self.config.n_steps, unit="step", disable=not main
        )
        return steps

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with (self.config.output / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
                metrics.write(json.dumps(entry) + "\n")

    def save(self) -> Path:
        """Save the result in bfloat16: a Hugging Face folder with its gist adapter, or the adapter of a frozen base.

        Each process must call it; the main one writes.
        """
        from ultragist_rag.engine import UltraGist

        config, folder = self.config, self.config.output / "model"
        unshard(self.objective)
        self.attachment.model.to(torch.bfloat16)
        if self.accelerator.is_main_process:
            composed = any("independent" in stage.modes for stage in config.stages)
            source = (config.base, config.revision) if config.base else None
            engine = UltraGist(
                self.attachment,
                self.tokenizer,
                trained_composed=composed,
                source=source,
                source_bias=self._source_bias,
            )
            engine.save_pretrained(folder, adapter_only=not config.train_base)
        self.accelerator.wait_for_everyone()
        return folder

    def _save_base(self) -> None:
        """Keep the model as it is before gist training: the denominator of retention."""
        gists = self.attachment.parameters()
        state = self.attachment.model.state_dict()
        weights = {name: whole(value) for name, value in state.items() if name not in gists}
        if self.accelerator.is_main_process:
            self.attachment.model.save_pretrained(self.config.output / "base", state_dict=weights)
            self.tokenizer.save_pretrained(self.config.output / "base")

    def _step(self, objective: Any, optimizers: Sequence[Any], step: int, batches: Iterator[Batch]) -> _Told:
        if step == self.config.first_gist_step and step and self.config.train_base:
            copy_base_into_gists(self.attachment)
            self._save_base()
        stage, number = self.config.stage_at(step)
        before = self._before(step - number)
        if stage.keep and number == 0:
            save_weights(before, self.weights, write=self.accelerator.is_main_process)
            self.accelerator.wait_for_everyone()
        lr = self.config.lr_at(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        n = self.config.accumulate
        told = [self._learn(objective, next(batches), wait=i + 1 < n) for i in range(n)]
        weights = list(self.weights.values())
        drop_untouched(weights, self.accelerator)
        norm = whole(self.accelerator.clip_grad_norm_(weights, self.config.clip))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if stage.keep and number + 1 == stage.steps:
            mix_in(before, self.weights, stage.keep)
        numbers = torch.cat([torch.stack([parts for _, parts in told]).mean(0), norm.detach().float()[None]])
        return _Told(step, [batch for batch, _ in told], numbers)

    def _learn(self, objective: Any, batch: Batch, *, wait: bool) -> tuple[Batch, Tensor]:
        """Add the gradients of one batch; with `wait`, processes exchange them later."""
        accelerator = self.accelerator
        with accelerator.no_sync(objective) if wait else nullcontext(), self.attachment.lock:
            with accelerator.autocast():
                value, parts = objective(batch)
            share = share_of(parts.weight * batch.counts, accelerator)
            accelerator.backward(value * (share / self.config.accumulate))
        told = torch.stack([value.detach(), parts.answer, parts.correct, parts.autoencoding]).float() * share
        return replace(batch, rows=(), planned=None), accelerator.reduce(told.to(accelerator.device), "mean")

    def _entry(self, told: _Told, seconds: float) -> dict[str, Any]:
        """A line of metrics. Asking for its numbers waits for the device, so this is done one step late."""
        value, answer, correct, autoencoding, norm = told.numbers.tolist()
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {told.step}. Lower lr, or check the data.")
        return {
            "step": told.step,
            "stage": told.batches[0].stage.name,
            "mode": "+".join(sorted({batch.mode for batch in told.batches})),
            "loss": round(value, 5),
            "answer": round(answer, 5),
            "correct": round(correct, 5),
            **({"autoencoding": round(autoencoding, 5)} if self.config.autoencodes else {}),
            "norm": round(norm, 4),
            "lr": self.config.lr_at(told.step),
            "tokens": sum(batch.n_tokens for batch in told.batches),
            "seconds": round(seconds, 3),
        }

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        use_muon = self.config.optimizer == "muon"
        matrices = [p for name, p in self.weights.items() if is_matrix(name, p) and use_muon]
        others = [p for name, p in self.weights.items() if not (is_matrix(name, p) and use_muon)]
        decay, lr = self.config.weight_decay, self.config.lr
        dtype = torch.bfloat16 if self.config.mixed_precision == "bf16" else None
        made: list[torch.optim.Optimizer] = [Muon(matrices, lr=lr, weight_decay=decay, dtype=dtype)] if matrices else []
        return [*made, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0 if use_muon else decay)]

    def _lead(self) -> int | None:
        return find_lead_token(self.attachment.config.lead_token, self.tokenizer)

    def _before(self, first: int) -> Path:
        """File of the weights at the beginning of a stage that keeps a share of them; `first` is its first step."""
        return self.config.output / f"before-{first}.safetensors"

    def _check_before(self, start: int) -> None:
        if start >= self.config.n_steps:
            return
        stage, number = self.config.stage_at(start)
        if stage.keep and number and not self._before(start - number).is_file():
            raise TrainingError(
                f"stage {stage.name} keeps {stage.keep} of the weights before it, but had begun without: there is no "
                f"{self._before(start - number)}. Choose another output, or leave `keep` out."
            )

    def _note(self) -> str:
        free = {"output", "data", "checkpoint_every", "workers", "stages", "source_bias"}
        return self.config.model_dump_json(exclude=free)

    def _cut_metrics(self, start: int) -> None:
        """Drop lines of steps that will be done again."""
        path = self.config.output / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()[:start]
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _check_teachers(config: TrainConfig, gist: GistConfig) -> None:
    """Refuse a teacher where the loop over windows would leave it out."""
    for stage in config.stages:
        if stage.distil and not (in_one_pass(gist, stage, "independent") and "stream" not in stage.modes):
            raise TrainingError(
                f"stage {stage.name} has distil {stage.distil}, which needs all windows in one pass: one_pass true, no "
                "mode stream, memory kv and a stride as long as the window. Change these, or leave distil out."
            )
