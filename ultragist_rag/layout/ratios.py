"""Choose ratios, as the authors' policies do.

Is        pure functions of the config, the lengths and a generator. No torch.
Flow      config -> [layout] -> modeling -> memory.
Paper     UltraGist, arXiv 2405.16635, section 3.3; legacy code: `Memory.set_compression_ratio`.
Change    a new policy: its name in config.py and one branch in `choose_ratio`.
Not here  when a ratio is chosen -> stream.py.
Holds     a policy without randomness needs no generator, and one with a seeded generator gives the same again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import ConfigError, InputError

__all__ = ["RatioState", "adapted_ratio", "choose_ratio", "usable_ratios"]


@dataclass(frozen=True, slots=True)
class RatioState:
    """What a sequence remembers of its ratios.

    Attributes:
        open: Ratio that holds on: for the sequence, or for an interleaved window that is open.
        index: Ratios that `sequence` has used.
        choices: Ratios that `sequence` cycles through, once it has begun.
    """

    open: int | None = None
    index: int = 0
    choices: tuple[int, ...] = ()


def usable_ratios(config: GistConfig, allow_zero: bool) -> tuple[int, ...]:
    """Give the ratios that divide the stride.

    Args:
        config: The settings.
        allow_zero: Whether ratio 0 (keep the window raw) may be chosen now.

    Returns:
        Ratios, in the order of the config.

    Raises:
        ConfigError: If none is left.
    """
    stride = config.n_stride
    usable = tuple(r for r in config.choices if (r == 0 and allow_zero) or (0 < r <= stride and stride % r == 0))
    if not usable:
        raise ConfigError(f"none of the ratios {list(config.choices)} can be used now: add one that divides {stride}.")
    return usable


def adapted_ratio(ratios: tuple[int, ...], needed: int, n_positions: int, window: int) -> int:
    """Take the ratio that wastes least while the tokens still fit the positions.

    Args:
        ratios: Ratios to choose from.
        needed: Tokens so far and to come.
        n_positions: Positions of the model.
        window: Raw tokens of a window.

    Returns:
        The ratio with the smallest reach that suffices, else the largest ratio.

    Example:
        >>> adapted_ratio((2, 4, 8, 16, 32), 1324, n_positions=256, window=64)
        8
    """
    reach = {ratio: (n_positions - window) * ratio + window if ratio else n_positions for ratio in reversed(ratios)}
    enough = [ratio for ratio in ratios if reach[ratio] >= needed]
    return min(enough, key=lambda ratio: reach[ratio]) if enough else max(ratios)


def choose_ratio(
    config: GistConfig,
    state: RatioState,
    *,
    allow_zero: bool,
    n_tokens: int,
    n_positions: int,
    generator: np.random.Generator | None,
) -> tuple[int, RatioState]:
    """Choose the ratio of one window.

    Args:
        config: The settings.
        state: What the sequence remembers.
        allow_zero: Whether ratio 0 may be chosen now.
        n_tokens: Tokens of the sequence that are known now.
        n_positions: Positions of the model.
        generator: For the random policies.

    Returns:
        The ratio, and what the sequence remembers now.

    Raises:
        InputError: If the policy is random and there is no generator.
    """
    if len(config.choices) == 1:
        return config.choices[0], state
    holds_on = config.ratio_policy in ("adapt", "instance-random")
    if holds_on and state.open is not None:
        return state.open, state
    ratios = usable_ratios(config, allow_zero)
    if config.ratio_policy == "join":
        return ratios[0], state
    if config.ratio_policy == "sequence":
        ratios = state.choices or ratios
        return ratios[state.index % len(ratios)], replace(state, index=state.index + 1, choices=ratios)
    if config.ratio_policy == "adapt":
        ratio = adapted_ratio(ratios, n_tokens + config.adapt_tokens, n_positions, config.window)
    elif generator is None:
        raise InputError(f"ratio_policy {config.ratio_policy!r} draws ratios at random: pass seed=.")
    else:
        ratio = int(generator.choice(ratios))
    return ratio, replace(state, open=ratio) if holds_on else state
