"""Settings of a training run, read from YAML and checked once.

Is        pydantic models; unknown keys and impossible values are refused with their place in the file.
Flow      config, kinds of samples -> [training config] -> loop.
Change    add a setting here and a line to docs/training.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import TrainingError
from ultragist_rag.training.jsonl import JSONL_KINDS
from ultragist_rag.training.samples import KINDS

__all__ = ["Mode", "Stage", "TrainConfig", "problems"]

Mode = Literal["full", "independent", "joint", "stream"]
Rate = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Strict):
    """One part of the curriculum: what is drawn, and how it is read.

    `modes` shares the batches: `full` reads everything with full attention, `independent` compresses each document on
    its own, `joint` compresses all documents as one stream, `stream` is the authors' progressive training on texts.
    """

    name: str
    steps: int = Field(gt=0)
    tokens: int = Field(gt=0, description="raw tokens per batch, about")
    kinds: dict[str, float] = Field(min_length=1)
    modes: dict[Mode, float] = Field(default={"full": 1.0}, min_length=1)
    documents: tuple[int, int] = (1, 1)
    lines: tuple[int, int] = (4, 8)
    questions: int = Field(default=6, gt=0)
    max_chars: int = Field(default=1000, ge=100)
    real_words: bool = Field(default=False, description="words of the texts in invented and scrambled documents")
    ratios: tuple[int, ...] = (2, 4, 4, 8, 16)
    windows: tuple[int, ...] = ()
    raw_share: float = Field(default=0.1, ge=0, le=1, description="documents of a gist prompt that stay text")
    text_weight: float = Field(default=0.0, ge=0, description="loss weight of document tokens under full attention")
    continued_weight: float = Field(default=1.0, gt=0, description="loss weight of tokens that continue a plain text")
    verbatim_share: float = Field(default=0.0, ge=0, le=1, description="rows that keep exact values beside the gists")
    distil: float = Field(default=0.0, ge=0, description="weight of the divergence from answers out of the full text")
    autoencoding: float = Field(default=0.0, ge=0, description="loss weight of tokens read off their gist alone")
    token_importance: float = Field(default=0.0, ge=0, le=1, description="0 weighs all tokens alike")
    one_pass: bool = Field(default=True, description="all windows in one forward, where the settings allow it")
    lr: Rate | tuple[Rate, Rate] | None = Field(default=None, description="instead of the run's; or from, to")
    keep: float = Field(default=0.0, ge=0, lt=1, description="share of the weights before it in those behind it")


class TrainConfig(_Strict):
    """One training run; see docs/training.md for every key."""

    output: Path
    data: Path
    source: Literal["countries", "jsonl"] = "jsonl"
    texts: tuple[str, ...] = ("wikipedia-00",)
    questions: tuple[str, ...] = ()
    base: str | None = None
    revision: str | None = None
    model: dict[str, Any] = Field(default={}, description="settings of a Llama model trained from scratch")
    vocabulary: int = Field(default=4096, ge=300)
    tokenizer_samples: int = Field(default=13500, gt=0, description="samples that a new tokenizer is trained on")
    gist: dict[str, Any] = {}
    source_bias: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="of its answers where a call names none; None for the base's",
    )
    train_base: bool = True
    optimizer: Literal["muon", "adamw"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    warmup: int = Field(default=100, ge=0)
    decay: float = Field(default=0.3, ge=0, le=1, description="last share of all steps, over which lr falls to 5 %")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    longest: int = Field(default=1100, gt=0, description="samples with more tokens are drawn again")
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    mixed_precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    accumulate: int = Field(default=1, gt=0, description="batches per optimiser step")
    autoencoding_gists: int = Field(default=64, gt=0, description="most gists read per batch")
    checkpoint_every: int = Field(default=200, gt=0)
    workers: int = Field(default=0, ge=0, description="processes that draw batches; 0 draws them in between")
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _frozen_base_learns_from_memories(self) -> TrainConfig:
        for stage in self.stages:
            if not self.train_base and "full" in stage.modes:
                raise ValueError(f"stage {stage.name} has mode full, which trains nothing while the base is frozen")
        return self

    @model_validator(mode="after")
    def _objectives_of_memories_have_memories(self) -> TrainConfig:
        for stage in self.stages:
            if set(stage.modes) == {"full"} and (stage.autoencoding or stage.token_importance):
                raise ValueError(
                    f"stage {stage.name} has mode full alone, which makes no memories: "
                    "autoencoding and token_importance change nothing there"
                )
        return self

    @model_validator(mode="after")
    def _gists_can_be_trained_as_asked(self) -> TrainConfig:
        gist = GistConfig.from_dict(self.gist)
        for stage in self.stages:
            if gist.memory == "recurrent" and "stream" in stage.modes:
                raise ValueError(
                    f"stage {stage.name} has mode stream, which keeps raw keys, but gist.memory is 'recurrent'. "
                    "Choose independent or joint"
                )
        return self

    @model_validator(mode="after")
    def _kinds_can_be_drawn(self) -> TrainConfig:
        known = {"countries": KINDS, "jsonl": JSONL_KINDS}[self.source]
        for stage in self.stages:
            unknown = sorted(set(stage.kinds) - set(known))
            if unknown:
                raise ValueError(
                    f"stage {stage.name} has kinds {unknown}, but source {self.source} knows {', '.join(known)}"
                )
            if self.source != "countries" and stage.real_words:
                raise ValueError(f"stage {stage.name} sets real_words, which source {self.source} does not know")
            if self.source == "countries" and "questions" in stage.kinds and not self.questions:
                raise ValueError(f"stage {stage.name} draws questions, but none are named. Set questions to file names")
        return self

    @classmethod
    def read(cls, path: Path, **overrides: Any) -> TrainConfig:
        """Read a YAML file; `overrides` that are not None replace keys of the file.

        Raises:
            TrainingError: If the file is missing, is no YAML, or a setting is wrong.
        """
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TrainingError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise TrainingError(f"{path} holds no settings. See docs/training.md for an example.")
        try:
            return cls(**{**loaded, **{key: value for key, value in overrides.items() if value is not None}})
        except ValidationError as error:
            raise TrainingError(f"{path} is not a valid training config: {problems(error)}") from error

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def stage_tokens(self) -> dict[str, int]:
        """Raw tokens of each stage, about."""
        return {stage.name: stage.steps * self.accumulate * stage.tokens for stage in self.stages}

    @property
    def autoencodes(self) -> bool:
        """Whether any stage has a loss of autoencoding."""
        return any(stage.autoencoding for stage in self.stages)

    @property
    def first_gist_step(self) -> int:
        """Step at which the first stage with memories begins; the gist parameters start there as copies of the base."""
        step = 0
        for stage in self.stages:
            if set(stage.modes) != {"full"}:
                return step
            step += stage.steps
        return step

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage that a step of the run belongs to, and the step's number in it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise TrainingError(f"step {step} lies beyond the last stage.")

    def lr_at(self, step: int) -> float:
        """Learning rate: linear warm-up, flat (a stage may set its own level), linear decay at the end."""
        stage, number = self.stage_at(step)
        first, last = stage.lr if isinstance(stage.lr, tuple) else (stage.lr or self.lr,) * 2
        peak = first + (last - first) * number / stage.steps
        falling = max(1.0, self.decay * self.n_steps)
        left = (self.n_steps - step) / falling
        return peak * min(1.0, (step + 1) / max(1, self.warmup)) * max(0.05, min(1.0, left))


def problems(error: ValidationError) -> str:
    """What is wrong with a file of settings, and where in it."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
