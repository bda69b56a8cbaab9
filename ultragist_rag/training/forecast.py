"""What a run will take, worked out from the shape of its base alone: no weights, no data, no step.

Is        arithmetic on a model without storage (torch's meta device): parameters, bytes, FLOPs, hours.
Flow      config, setup, dry_run -> [forecast] -> cli.
Change    how activations are estimated, what a token costs.
Not here  the same measured on one batch -> dry_run.py.
Holds     its counts of parameters and bytes are those of the loaded model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import TrainingError
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.training.autoencoding import GistDecoder
from ultragist_rag.training.combined import Combined
from ultragist_rag.training.config import Stage, TrainConfig
from ultragist_rag.training.dry_run import bytes_of_training

__all__ = ["Forecast", "forecast"]

_FLOPS = 6  # per parameter and token: two forward, four backward; a frozen base saves two and recomputing costs two


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was worked out; nothing of it is measured.

    Attributes:
        n_parameters: Of the model, gist modules included, and the decoder of autoencoding.
        n_trained: Of these, those that are trained.
        n_steps: Optimiser steps.
        n_tokens: Raw tokens of all stages, about.
        stage_tokens: The same by stage.
        weight_bytes: Of all parameters.
        gradient_bytes: Of the trained ones' gradients.
        optimizer_bytes: Of the optimiser's moments.
        activation_bytes: Of the largest batch: hidden states, logits of every token, one layer's work. An upper bound
            for modes whose documents have no labels.
        memory_bytes: All of it together, on one device that does all the work.
        flops: 6 x parameters x tokens.
        tflops: Rate that was assumed, 10^12 FLOPs per second.
        hours: FLOPs over this rate.
    """

    n_parameters: int
    n_trained: int
    n_steps: int
    n_tokens: int
    stage_tokens: dict[str, int]
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    memory_bytes: int
    flops: float
    tflops: float
    hours: float


def forecast(config: TrainConfig, tflops: float) -> Forecast:
    """Work out what a run takes; of a base only its config.json is read.

    Args:
        config: The run.
        tflops: Rate that the hardware is assumed to achieve, in 10^12 FLOPs per second.

    Returns:
        The figures.

    Raises:
        TrainingError: If the base has no readable config.json, or the rate is not positive.
    """
    if not tflops > 0:
        raise TrainingError(f"tflops is {tflops}, but must be above 0: the rate that the hardware achieves.")
    attachment = _without_storage(config)
    with torch.device("meta"):
        decoder = GistDecoder(attachment, config.autoencoding_gists) if config.autoencodes else None
    gists = {id(parameter) for parameter in attachment.parameters().values()}
    for parameter in attachment.model.parameters():
        parameter.requires_grad_(config.train_base or id(parameter) in gists)
    objective = Combined(attachment, None, decoder)
    n_parameters = sum(p.numel() for p in objective.parameters())
    stage_tokens = config.stage_tokens
    n_tokens = sum(stage_tokens.values())
    weights, gradients, moments = bytes_of_training(objective, config.optimizer)
    activations = max(_activations(config, stage, attachment) for stage in config.stages)
    flops = float(_FLOPS * n_parameters * n_tokens)
    return Forecast(
        n_parameters=n_parameters,
        n_trained=sum(p.numel() for p in objective.trained().values()),
        n_steps=config.n_steps,
        n_tokens=n_tokens,
        stage_tokens=stage_tokens,
        weight_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=moments,
        activation_bytes=activations,
        memory_bytes=weights + gradients + moments + activations,
        flops=flops,
        tflops=tflops,
        hours=flops / (tflops * 1e12) / 3600,
    )


def _without_storage(config: TrainConfig) -> Attachment:
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    gist = GistConfig.from_dict(config.gist) if config.gist else GistConfig()
    if config.base:
        try:
            shape: Any = AutoConfig.from_pretrained(config.base, revision=config.revision)
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"config.json of {config.base} cannot be read ({error}). Name a folder that holds it, or go online."
            ) from error
    else:
        shape = LlamaConfig(**{"vocab_size": config.vocabulary, **config.model})
    dtype = getattr(torch, config.dtype) if config.base else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        attachment = attach(model, gist, self_test=False)
        for path, module in attachment.modules():
            del path
            module.to(torch.float32)
    return attachment


def _activations(config: TrainConfig, stage: Stage, attachment: Attachment) -> int:
    """Bytes of one batch between forward and backward, all its rows at a time.

    Kept per token: with gradient checkpointing the input of each layer and its gist keys and values, else all that a
    layer saves; and the logits of every token, in the model's format and as float32 log-probabilities. One layer's work
    and the gradient of the logits of the longest row come on top.
    """
    shape = attachment.model.config
    size = 2 if config.mixed_precision == "bf16" or (config.dtype == "bfloat16" and config.base) else 4
    kv = attachment.n_kv_heads * attachment.head_dim
    heads = shape.num_attention_heads * attachment.head_dim
    # A layer saves: its input, two normed hidden states, attention output, sum; queries twice; keys and values; gates.
    layer = size * (5 * shape.hidden_size + 3 * heads + 3 * kv + 4 * shape.intermediate_size)
    ratio = min(stage.ratios)
    gists = size * 2 * kv / ratio
    kept = size * shape.hidden_size + gists if config.gradient_checkpointing else layer * (1 + 1 / ratio)
    longest = min(config.longest, stage.tokens)
    logits = stage.tokens * shape.vocab_size * (size + 4) + longest * shape.vocab_size * 4
    return int(stage.tokens * shape.num_hidden_layers * kept + longest * layer + logits)
