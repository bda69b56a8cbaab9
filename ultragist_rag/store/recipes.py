"""What an engine does to a text, as far as an id depends on it.

Is        recipes of memories and of engines, which agree where the memory is the engine's; making a memory again.
Flow      memory, refs, source -> [recipes] -> store.
Change    what a store needs of an engine (`Compressor`).
Not here  how ids are computed from recipes -> refs.py.
Holds     `recipe_of(engine.compress(text, ratio=r)) == recipe_for(engine, r)`, texts shorter than r tokens aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from ultragist_rag.config import GistConfig
from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.verbatim import CUSTOM, policy_names
from ultragist_rag.store.codec import Expected, check_match
from ultragist_rag.store.refs import Recipe
from ultragist_rag.store.source import SourceRecord

__all__ = ["BATCH", "Compressor", "can_repeat", "check_recipe", "expected_by", "recipe_for", "recipe_of", "repeat"]

BATCH = 16
"""Texts that a store hands to the engine at once."""


@runtime_checkable
class Compressor(Protocol):
    """What a store uses of an engine."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model with its gist projections."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer; empty if there is none."""

    @property
    def config(self) -> GistConfig:
        """Settings of the compression."""

    @property
    def model(self) -> Any:
        """The model; its `dtype` is that of the memories."""

    def compress(
        self, texts: Sequence[str], *, ratio: int | Sequence[int], joint: bool, verbatim: str | None = None
    ) -> list[GistMemory]:
        """Condense texts into memories, one each, at one ratio or at a ratio for each; `verbatim` names a policy."""


def recipe_for(
    engine: Compressor, ratio: int | None = None, joint: bool = False, *, dtype: str | None = None, verbatim: str = ""
) -> Recipe:
    """Return the recipe of what an engine would make of a text.

    Args:
        engine: The engine.
        ratio: Raw tokens per gist token; None for the ratio of its config.
        joint: Whether the memory would be a stream of its own.
        dtype: `int8` or `int4` if it is going to be quantised; None for the number format of the model.
        verbatim: Name of the policy that keeps spans raw; empty for none.

    Returns:
        The recipe.

    Raises:
        InputError: If the policy is no name.
    """
    if not isinstance(verbatim, str):
        raise InputError(
            "stores find memories by the name of their verbatim policy: give it one with `register_policy`, and pass "
            "the name."
        )
    return Recipe(
        model=engine.fingerprint,
        tokenizer=engine.tokenizer_fingerprint,
        config=engine.config.to_dict(),
        ratios=(engine.config.ratio if ratio is None else ratio,),
        mode="joint" if joint else "independent",
        verbatim=verbatim,
        dtype=dtype or _name(engine.model.dtype),
    )


def recipe_of(memory: GistMemory, ratio: int | None = None, *, dtype: str | None = None) -> Recipe:
    """Return the recipe of a memory.

    Args:
        memory: The memory.
        ratio: The ratio it was asked for; None to read it from its segments.
        dtype: `int8` or `int4` if it is going to be quantised; None for its own number format.

    Returns:
        The recipe. Its ratio plan is one number wherever one ratio makes this memory of its text.
    """
    return Recipe(
        model=memory.fingerprint,
        tokenizer=memory.tokenizer_fingerprint,
        config=memory.config.to_dict(),
        ratios=_plan(memory) if ratio is None else (ratio,),
        mode=("joint" if memory.joint else "independent") + ("+raw" if memory.n_raw_tail else ""),
        verbatim=_verbatim(memory),
        dtype=dtype or _name(memory.dtype),
    )


def expected_by(engine: Compressor | None, name: str) -> Expected:
    """Return what the file of a memory must belong to, for this engine to read it."""
    if engine is None:
        return Expected(name=name)
    return Expected(name=name, model=engine.fingerprint, tokenizer=engine.tokenizer_fingerprint, config=engine.config)


def can_repeat(recipe: Recipe) -> bool:
    """Say whether `repeat` can make the memory of a recipe again: one ratio, no raw tail, a policy that is known."""
    one_way = len(recipe.ratios) == 1 and recipe.mode in ("independent", "joint")
    return one_way and recipe.verbatim in ("", *policy_names())


def check_recipe(recipe: Recipe, engine: Compressor) -> None:
    """Refuse to make a memory again with another engine than the first time.

    Args:
        recipe: How it was made.
        engine: What is there now.

    Raises:
        MemoryMismatchError: If model, tokenizer or settings differ.
    """
    manifest: Mapping[str, Any] = recipe.to_dict()
    check_match(dict(manifest), expected_by(engine, ""))


def repeat(engine: Compressor, records: Sequence[SourceRecord]) -> list[GistMemory]:
    """Make memories again from their source records, all of one mode and policy in one batch.

    Args:
        engine: The engine that made them the first time.
        records: Source records whose recipes `can_repeat`; policies of verbatim spans are passed on by name.

    Returns:
        Sealed memories, in order, not quantised yet: `quantise.as_stored` tells how they will be read.

    Raises:
        MemoryMismatchError: If a memory was made with another model, tokenizer or config.
    """
    batches: dict[tuple[str, str], list[int]] = {}
    for index, record in enumerate(records):
        check_recipe(record.recipe, engine)
        batches.setdefault((record.recipe.mode, record.recipe.verbatim), []).append(index)
    made: dict[int, GistMemory] = {}
    for (mode, verbatim), rows in batches.items():
        ratios = [records[row].recipe.ratios[0] for row in rows]
        settings: dict[str, Any] = {"ratio": ratios[0] if len(set(ratios)) == 1 else ratios, "joint": mode == "joint"}
        if verbatim:
            settings["verbatim"] = verbatim
        for row, memory in zip(rows, engine.compress([records[row].text for row in rows], **settings), strict=True):
            recipe = records[row].recipe
            made[row] = memory.seal() if recipe.quantise else memory.seal().to(getattr(torch, recipe.dtype))
    return [made[row] for row in range(len(records))]


def _plan(memory: GistMemory) -> tuple[int, ...]:
    """Return the one ratio that explains all gists, that of the config if it does; else the ratios of the segments.

    A last window shorter than the ratio has one gist whatever the ratio is, and tells nothing about it.
    """
    gists = [segment for segment in memory.segments if segment.kind == "gist"]
    ratios = [segment.ratio or 0 for segment in gists]
    body, rest = ratios, 0
    if gists and gists[-1].stop - gists[-1].start == 1:
        body, rest = ratios[:-1], ratios[-1]
    for ratio in (memory.config.ratio, max(ratios, default=0)):
        if set(body) <= {ratio} and rest <= ratio:
            return (ratio,)
    return tuple(ratios)


def _verbatim(memory: GistMemory) -> str:
    """Return the name of the policy; where it has none, which tokens it kept stands for what it is."""
    if memory.verbatim != CUSTOM:
        return memory.verbatim
    kept = [(one.source_start, one.source_stop) for one in memory.segments if one.kind == "verbatim"]
    return f"{CUSTOM}-{hashlib.sha256(repr(kept).encode('ascii')).hexdigest()[:16]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
