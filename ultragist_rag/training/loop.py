"""The training loop: a curriculum of stages over one model with gist modules.

Is        optimiser steps through accelerate, with checkpoints, progress and a metrics file.
Flow      config, setup, batches, combined, checkpoint, dry_run -> [loop] -> cli.
Paper     UltraGist, arXiv 2405.16635, section 3.3.
Change    how batches are grouped, what is logged.
Not here  what a batch's loss is -> combined.py; schedules -> config.py; what several processes need -> processes.py.
Holds     batch n depends on the config and n alone, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.training.autoencoding import GistDecoder
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.checkpoint import load_state, save_state
from ultragist_rag.training.combined import Combined
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.dry_run import TrainReport, is_matrix, measure
from ultragist_rag.training.optim import Muon
from ultragist_rag.training.processes import check_sharding, drop_untouched, my_rows, share_of, unshard, whole
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
        self.attachment = make_attachment(config, self.tokenizer)
        model = self.attachment.model
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        self._group: tuple[tuple[str, int], list[list[Row]]] | None = None
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
        return measure(self.config, self.objective, self.batch, self.accelerator.autocast)

    def run(self, stop_after: int | None = None) -> Path:
        """Train to the end (or for some steps more), then save the model; return its folder."""
        from tqdm import tqdm

        state, note, main = self.config.output / "state", self._note(), self.accelerator.is_main_process
        objective, *optimizers = self.accelerator.prepare(self.objective, *self._optimizers())
        start = load_state(state, self.weights, optimizers, note)
        self.config.output.mkdir(parents=True, exist_ok=True)
        objective.train()
        end = self.config.n_steps if stop_after is None else min(self.config.n_steps, start + stop_after)
        if main:
            self._cut_metrics(start)
        steps = tqdm(
            range(start, end), "train", initial=start, total=self.config.n_steps, unit="step", disable=not main
        )
        for step in steps:
            entry = self._step(objective, optimizers, step)
            if main:
                with (self.config.output / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
                    metrics.write(json.dumps(entry) + "\n")
            if (step + 1) % self.config.checkpoint_every == 0 or step + 1 == end:
                save_state(state, step + 1, self.weights, optimizers, note, write=main)
        self.accelerator.wait_for_everyone()
        return self.save() if end == self.config.n_steps else state

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
            engine = UltraGist(self.attachment, self.tokenizer, trained_composed=composed, source=source)
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
        if step == self.config.first_gist_step and step and self.config.train_base:
            copy_base_into_gists(self.attachment)
            self._save_base()
        lr = self.config.lr_at(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
        n = self.config.accumulate
        told = [self._learn(objective, stage, number * n + i, wait=i + 1 < n) for i in range(n)]
        if not all(math.isfinite(entry["loss"]) for entry in told):
            raise TrainingError(
                f"the loss is {[entry['loss'] for entry in told]} at step {step}. Lower lr, or check the data."
            )
        weights = list(self.weights.values())
        drop_untouched(weights, self.accelerator)
        norm = whole(self.accelerator.clip_grad_norm_(weights, self.config.clip)).item()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        parts = ["answer", "correct", *(["autoencoding"] if self.config.autoencodes else [])]
        return {
            "step": step,
            "stage": stage.name,
            "mode": "+".join(sorted({entry["mode"] for entry in told})),
            "loss": round(sum(entry["loss"] for entry in told) / n, 5),
            **{part: round(sum(entry[part] for entry in told) / n, 5) for part in parts},
            "norm": round(norm, 4),
            "lr": lr,
            "tokens": sum(entry["tokens"] for entry in told),
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _learn(self, objective: Any, stage: Stage, number: int, *, wait: bool) -> dict[str, Any]:
        """Add the gradients of one batch; with `wait`, processes exchange them later."""
        seed = f"{self.config.seed}-{stage.name}-{number}"
        mode = random.Random(seed).choices(list(stage.modes), weights=list(stage.modes.values()))[0]
        rows, accelerator = self.batch(stage, number), self.accelerator
        mine, rank = my_rows(rows, accelerator), accelerator.process_index
        with accelerator.no_sync(objective) if wait else nullcontext():
            with accelerator.autocast():
                value, parts = objective(mode, mine or rows[:1], stage, f"{seed}-{rank}" if rank else seed)
            share = share_of(parts.weight if mine else 0.0, accelerator)
            accelerator.backward(value * (share / self.config.accumulate))
        mine_told = torch.tensor([value.item(), parts.answer, parts.correct, parts.autoencoding]) * share
        told = accelerator.reduce(mine_told.to(accelerator.device), "mean").tolist()
        names = ("loss", "answer", "correct", "autoencoding")
        return {"mode": mode, "tokens": sum(row.n_tokens for row in rows), **dict(zip(names, told, strict=True))}

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        use_muon = self.config.optimizer == "muon"
        matrices = [p for name, p in self.weights.items() if is_matrix(name, p) and use_muon]
        others = [p for name, p in self.weights.items() if not (is_matrix(name, p) and use_muon)]
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
