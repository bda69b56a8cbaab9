"""GistConfig: every setting of the compression, frozen and checked once.

Is        a frozen dataclass; code below it never checks a setting again.
Flow      errors -> [config] -> types -> layout -> modeling -> memory -> engine.
Paper     UltraGist, arXiv 2405.16635; `ultragist_*` and `beacon_*` keys of the authors' config.json. `memory` and
          `granularity` are the two axes of arXiv 2412.17483, section 2.
Change    add a setting here, with its check, and a line to docs/settings.md.
Not here  names of the authors' keys -> modeling/checkpoint.py; training settings -> training/.
Holds     `GistConfig.from_dict(config.to_dict()) == config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ultragist_rag.errors import ConfigError, InputError

__all__ = ["Attention", "GistConfig", "MemoryKind", "Placement", "RatioPolicy", "check_source_bias"]

RatioPolicy = Literal["fixed", "sequence", "adapt", "step-random", "instance-random", "join"]
Placement = Literal["append", "interleave"]
Attention = Literal["step-expansion", "full-coverage", "segmentation"]
MemoryKind = Literal["kv", "recurrent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GistConfig:
    """How token sequences are condensed into gist memories.

    Attributes:
        window: Raw tokens encoded together in one step.
        stride: Oldest raw tokens of a full window that get condensed, at most `window`; None means `window`.
        ratio: Raw tokens per gist token (x-fold) that `compress` uses unless told otherwise.
        ratios: Ratios that `forward` chooses from by `ratio_policy`; empty means `(ratio,)`. 0 keeps a window raw.
        ratio_policy: `fixed` takes the one ratio; `sequence` cycles; `adapt` takes the smallest ratio that fits the
            positions of the model; `step-random` draws per window, `instance-random` per sequence (both need a
            seed); `join` uses the first ratio alone, as the authors' checkpoints trained with it do when used.
        adapt_tokens: Tokens that `adapt` reserves for what follows.
        adapt_positions: Positions that `adapt` may fill; None means the model's own number.
        placement: `append` puts gists behind a full window, `interleave` behind every `ratio` raw tokens.
        attention: What a gist sees of its window: `step-expansion` all tokens up to its own, `full-coverage` the
            whole window, `segmentation` its own tokens only. Interleaved gists only differ in what others see.
        attend_previous: Whether a gist sees the earlier gists of its window (step-expansion).
        even_spread: Whether the authors' stream spaces gists evenly where a ratio does not divide the stride
            (UltraGist), or leaves the rest at the end uncovered (Beacon).
        sink: First tokens of a joint sequence whose raw keys and values are kept for ever.
        projections: Letters of the projections that gist positions have of their own, out of `qkvo`.
        rank: None for full gist projections; a number for a low-rank difference to the base projections.
        memory: What stands for a text: `kv` keys and values of the gists in all layers; `recurrent` their last hidden
            states, which later windows and prompts read as input embeddings.
        lead_token: Token in front of every independent document: `auto` what the tokenizer prepends (else the
            first token of its chat template), `none`, or a token id.

    Raises:
        ConfigError: If a value is out of range, or two settings exclude each other.

    Example:
        >>> GistConfig(window=512, ratio=4).stride
        512
        >>> GistConfig(window=512, stride=600)
        Traceback (most recent call last):
        ...
        ultragist_rag.errors.ConfigError: stride is 600, but must lie between 1 and window 512.
    """

    window: int = 1024
    stride: int | None = None
    ratio: int = 8
    ratios: tuple[int, ...] = ()
    ratio_policy: RatioPolicy = "fixed"
    adapt_tokens: int = 0
    adapt_positions: int | None = None
    placement: Placement = "append"
    attention: Attention = "step-expansion"
    attend_previous: bool = True
    even_spread: bool = True
    sink: int = 0
    projections: str = "qkvo"
    rank: int | None = None
    memory: MemoryKind = "kv"
    lead_token: Literal["auto", "none"] | int = "auto"

    def __post_init__(self) -> None:
        """Fill in defaults that depend on other settings, then check everything."""
        _require_int("window", self.window, 1)
        if self.stride is None:
            object.__setattr__(self, "stride", self.window)
        _check_numbers(self)
        _check_choices(self)
        _check_ratios(self)
        _check_recurrent(self)

    @property
    def n_stride(self) -> int:
        """`stride` as a number: it is never None once the config is made."""
        return self.window if self.stride is None else self.stride

    @property
    def choices(self) -> tuple[int, ...]:
        """The ratios that `forward` chooses from: `ratios`, or `ratio` alone where that is empty."""
        return self.ratios or (self.ratio,)

    @property
    def masks_first_window(self) -> bool:
        """Whether training leaves the first window out of the loss, as the authors do."""
        return not (self.placement == "interleave" and self.attention == "full-coverage")

    @property
    def granularity(self) -> Literal["fine", "coarse"]:
        """Whether gists stand for stretches of a window of their own, or all together for the whole of it."""
        return "coarse" if (self.placement, self.attention) == ("append", "full-coverage") else "fine"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; `from_dict` is the exact inverse.

        `memory` stands there only where it is not `kv`: ids of memories are made of this, and outlive new settings.
        """
        settings = {**asdict(self), "ratios": list(self.ratios)}
        return {name: value for name, value in settings.items() if (name, value) != ("memory", "kv")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GistConfig:
        """Make a config from `to_dict` output, or from any part of it.

        Args:
            values: Settings by name; what is missing takes its default.

        Returns:
            The config.

        Raises:
            ConfigError: If a name is unknown or a value does not fit.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"unknown settings {', '.join(unknown)}: remove them. Known are {', '.join(sorted(known))}."
            )
        settings = dict(values)
        if "ratios" in settings:
            if not isinstance(settings["ratios"], list | tuple):
                raise ConfigError(f"ratios is {settings['ratios']!r}, but must be a list of whole numbers.")
            settings["ratios"] = tuple(settings["ratios"])
        return cls(**settings)


def check_source_bias(bias: object) -> float:
    """Check how strongly answers are to be held to the words of their prompts.

    Args:
        bias: The setting, see `Decoding`.

    Returns:
        The bias.

    Raises:
        InputError: If it is not a number of at least 0.
    """
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not 0 <= bias < math.inf:
        raise InputError(f"source_bias is {bias!r}, but must be a number of at least 0.")
    return float(bias)


def _require_int(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least {low}.")


def _check_numbers(config: GistConfig) -> None:
    for name, low in (("stride", 1), ("ratio", 1), ("adapt_tokens", 0), ("sink", 0)):
        _require_int(name, getattr(config, name), low)
    for name in ("rank", "adapt_positions"):
        if getattr(config, name) is not None:
            _require_int(name, getattr(config, name), 1)
    if config.n_stride > config.window:
        raise ConfigError(f"stride is {config.stride}, but must lie between 1 and window {config.window}.")
    if config.sink > config.window:
        raise ConfigError(f"sink is {config.sink}, but the first window has only {config.window} tokens. Lower it.")
    for name in ("attend_previous", "even_spread"):
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name} is {getattr(config, name)!r}, but must be True or False.")


def _check_choices(config: GistConfig) -> None:
    for name, choices in (
        ("ratio_policy", get_args(RatioPolicy)),
        ("placement", get_args(Placement)),
        ("attention", get_args(Attention)),
        ("memory", get_args(MemoryKind)),
    ):
        if getattr(config, name) not in choices:
            raise ConfigError(f"{name} is {getattr(config, name)!r}, but must be one of {', '.join(choices)}.")
    letters = config.projections
    if not isinstance(letters, str) or set(letters) - set("qkvo") or len(set(letters)) != len(letters):
        raise ConfigError(f"projections is {letters!r}, but must be letters out of 'qkvo', each at most once.")
    if config.lead_token not in ("auto", "none"):
        _require_int("lead_token", config.lead_token, 0)
    if config.placement == "interleave" and config.n_stride != config.window:
        raise ConfigError(
            f"placement 'interleave' condenses whole windows, but stride {config.stride} is not window "
            f"{config.window}. Leave stride out, or use placement 'append'."
        )


def _check_ratios(config: GistConfig) -> None:
    if not isinstance(config.ratios, tuple):
        raise ConfigError(f"ratios is {config.ratios!r}, but must be a tuple of whole numbers.")
    for ratio in config.ratios:
        _require_int("each of ratios", ratio, 0)
    if config.ratio_policy == "fixed" and len(config.ratios) > 1:
        raise ConfigError(
            f"ratio_policy 'fixed' takes one ratio, but ratios is {list(config.ratios)}. "
            "Choose the policy 'sequence', 'adapt', 'step-random', 'instance-random' or 'join'."
        )
    if config.placement == "interleave" and (0 in config.ratios or config.ratio_policy == "join"):
        raise ConfigError(
            "placement 'interleave' knows neither ratio 0 nor ratio_policy 'join'. Use placement 'append'."
        )
    if len(config.ratios) > 1 and all(ratio and config.n_stride % ratio for ratio in config.ratios):
        raise ConfigError(
            f"none of the ratios {list(config.ratios)} divides stride {config.n_stride}, and a choice is made only "
            "among those that do. Add a ratio that does."
        )


def _check_recurrent(config: GistConfig) -> None:
    if config.memory == "kv":
        return
    if config.granularity != "coarse":
        raise ConfigError(
            f"memory 'recurrent' hands on gists that saw their whole window, but placement is {config.placement!r} and "
            f"attention {config.attention!r}. Set placement 'append' and attention 'full-coverage'."
        )
    if config.sink:
        raise ConfigError(f"memory 'recurrent' keeps no keys and values, but sink is {config.sink}. Set it to 0.")
