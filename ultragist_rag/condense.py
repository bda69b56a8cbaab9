"""Texts in, what a prompt shows of them out: a marker each, within a budget of slots.

Is        what a compressor behind a retriever does, for any framework; knows texts, scores and references only.
Flow      engine, store, layout -> [condense] -> integrations.
Paper     none.
Change    which texts stay text, when a stored memory is good enough, how scores become weights.
Not here  dividing slots -> layout/budget.py; looking up and compressing -> store.
Holds     one text in, one out, in order; what comes out carries no marker that was not made or known here.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.layout.budget import plan_ratios
from ultragist_rag.memory.documents import ids_of_text
from ultragist_rag.memory.ingest import verbatim_tokens
from ultragist_rag.memory.verbatim import policy_name
from ultragist_rag.store import GistStore, SourceRecord, neutralise, parse_marker
from ultragist_rag.store.recipes import check_recipe, recipe_of
from ultragist_rag.store.resolving import check_lists
from ultragist_rag.store.scope import hand_out

__all__ = ["REFERENCE", "CondensePolicy", "Condensed", "condense"]

REFERENCE = "ultragist_id"
"""Key under which metadata of a document or node hold the id of its memory."""

_WEIGHT = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CondensePolicy:
    """How texts are condensed for a prompt.

    Attributes:
        ratio: Raw tokens per gist token, for all texts. None takes what `slots` demands, else the ratio of the engine's
            config; a memory that a reference names then serves at its own ratio, and without `verbatim` as it is.
        slots: Slots that all memories of a call may take together; every text then gets a ratio of its own.
        ratios: Ratios to choose from; empty for those that the engine's config names.
        min_tokens: A text of fewer tokens stays text; it takes no slots.
        on_miss: `compress` makes the memory that is asked for. `stored` is content with a smaller one that is stored
            already, and compresses only texts that have none.
        verbatim: Name of the policy whose tokens stay raw beside the gists, counted in `slots`; None for none.

    Raises:
        InputError: If a value does not fit, or two exclude each other.
    """

    ratio: int | None = None
    slots: int | None = None
    ratios: tuple[int, ...] = ()
    min_tokens: int = 0
    on_miss: Literal["compress", "stored"] = "compress"
    verbatim: str | None = None

    def __post_init__(self) -> None:
        """Check everything once."""
        policy_name(self.verbatim)
        numbers = [("ratio", self.ratio), ("slots", self.slots), *(("each of ratios", one) for one in self.ratios)]
        for name, value in numbers:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        if isinstance(self.min_tokens, bool) or not isinstance(self.min_tokens, int) or self.min_tokens < 0:
            raise InputError(f"min_tokens is {self.min_tokens!r}, but must be a whole number of at least 0.")
        if self.ratio is not None and self.slots is not None:
            raise InputError(
                f"ratio is {self.ratio} and slots is {self.slots}: a budget chooses ratios, give one only."
            )
        if self.ratios and self.slots is None and self.on_miss == "compress":
            raise InputError(
                f"ratios are {self.ratios}, but nothing chooses among them: set slots or on_miss='stored', or give one "
                "ratio."
            )
        if self.on_miss not in ("compress", "stored"):
            raise InputError(f"on_miss is {self.on_miss!r}, but must be 'compress' or 'stored'.")


@dataclass(frozen=True, slots=True)
class Condensed:
    """What became of a text.

    Attributes:
        text: What a prompt shows: a marker, or the text itself without look-alikes of markers.
        marker: The marker; None if the text stays text.
        n_tokens: Tokens of the text.
        ratio: Raw tokens per gist token of its memory; None if it stays text or has several ratios.
    """

    text: str
    marker: str | None
    n_tokens: int
    ratio: int | None


@dataclass(slots=True)
class _Waiting:
    """A text that is going to have a memory, and all the places where it stands."""

    text: str
    n_tokens: int
    weight: int
    record: SourceRecord | None
    metadata: Mapping[str, Any]
    places: list[int] = field(default_factory=list)


def condense(  # noqa: PLR0913 - lists of one length, all by keyword
    engine: UltraGist,
    store: GistStore,
    texts: Sequence[str],
    *,
    policy: CondensePolicy = CondensePolicy(),
    scores: Sequence[int | float] | None = None,
    references: Sequence[str | None] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
) -> list[Condensed]:
    """Replace texts by markers of their memories, which are looked up first and made in one batch if missing.

    Look-alikes of markers inside texts are made harmless before anything else. Empty and short texts stay text. A text
    that is the marker named by its own reference, and known to the store, passes as it is.

    Args:
        engine: Compresses what is missing.
        store: Looked up and filled.
        texts: Documents, the best first unless there are scores.
        policy: Ratio or budget, and what stays text.
        scores: How good each text is, higher is better; a budget is divided in proportion to them (if one is below 0,
            to their distance from the lowest), and by rank without them.
        references: For each text, the id of a memory that may have been made of it, or None.
        metadata: Kept beside the texts that are compressed, as far as JSON can carry it.

    Returns:
        One for each text, in order.

    Raises:
        InputError: If an argument does not fit, or the texts do not fit into `slots` at the highest ratio.
        MemoryMismatchError: If a text is a marker already, of another model, tokenizer or config.
        StoreError: If a memory does not fit into the store, or its place cannot be written.

    Example:
        >>> from ultragist_rag.store import GistStore
        >>> from ultragist_rag.testing import tiny_engine
        >>> condense(tiny_engine(), GistStore.open("memory://"), [])
        []
    """
    if not isinstance(policy, CondensePolicy):
        raise InputError(f"policy is {policy!r}, but must be a CondensePolicy. Leave it out for its defaults.")
    n_texts = len(texts)
    check_lists(texts, scores=scores, references=references, metadata=metadata)
    weights = _weights(n_texts, scores)
    names = [parse_marker(reference) if reference else None for reference in references or [None] * n_texts]
    notes = metadata or [{}] * n_texts
    done: dict[int, Condensed] = {}
    n_passed = 0
    waiting: dict[str, _Waiting] = {}
    for place, (text, name) in enumerate(zip(texts, names, strict=True)):
        if name is not None and parse_marker(text) == name and _is_known(store, name):
            done[place], slots = _passed(engine, store, name)
            n_passed += slots
            continue
        clean = neutralise(text)
        n_tokens = len(ids_of_text(clean, engine.tokenizer, joint=False, first=True)) if clean.strip() else 0
        if n_tokens < max(policy.min_tokens, 1):
            done[place] = Condensed(clean, None, n_tokens, None)
            continue
        one = waiting.setdefault(clean, _Waiting(clean, n_tokens, 0, None, _plain(notes[place])))
        one.places.append(place)
        one.weight = max(one.weight, weights[place])
        one.record = one.record or _record(engine, store, clean, name)
    for one, marker, ratio in _find_or_make(engine, store, list(waiting.values()), policy, n_passed):
        done |= dict.fromkeys(one.places, Condensed(marker, marker, one.n_tokens, ratio))
    return [done[place] for place in range(n_texts)]


def _find_or_make(
    engine: UltraGist, store: GistStore, waiting: list[_Waiting], policy: CondensePolicy, n_passed: int
) -> list[tuple[_Waiting, str, int]]:
    """Find or make a memory for each text; return its marker and ratio."""
    choices = tuple(policy.ratios or (ratio for ratio in engine.config.choices if ratio))
    if policy.slots is None:
        wanted = [policy.ratio or engine.config.ratio] * len(waiting)
    else:
        lengths, weights = [one.n_tokens for one in waiting], [one.weight for one in waiting]
        taken = n_passed + sum(verbatim_tokens(engine, [one.text for one in waiting], policy.verbatim))
        wanted = plan_ratios(lengths, policy.slots, choices, engine.config.n_stride, weights, taken=taken)
    found: list[tuple[_Waiting, str, int]] = []
    missing: list[tuple[_Waiting, int]] = []
    for one, ratio in zip(waiting, wanted, strict=True):
        more = sorted({ratio, *(other for other in choices if other > ratio)}) if policy.on_miss == "stored" else []
        stored = _stored(engine, store, one, more or [ratio], policy, looks=bool(more))
        if stored is None:
            missing.append((one, ratio))
        else:
            found.append((one, *stored))
    markers = store.get_or_compress(
        engine,
        [one.text for one, _ in missing],
        ratio=[ratio for _, ratio in missing],
        metadata=[one.metadata for one, _ in missing],
        verbatim=policy.verbatim,
    )
    return found + [(one, marker, ratio) for (one, ratio), marker in zip(missing, markers, strict=True)]


def _stored(
    engine: UltraGist, store: GistStore, one: _Waiting, ratios: Sequence[int], policy: CondensePolicy, *, looks: bool
) -> tuple[str, int] | None:
    """Return marker and ratio of the first of these ratios that is stored; that of a reference needs no look-up."""
    recipe = one.record.recipe if one.record is not None else None
    own = recipe.ratios[0] if recipe is not None else None
    fits = recipe is not None and recipe.verbatim == policy_name(policy.verbatim)
    is_free = policy.ratio is None and policy.slots is None and (fits or policy.verbatim is None)
    if one.record is not None and own is not None and is_free:
        return hand_out(one.record.name), own
    for ratio in ratios:
        if one.record is not None and fits and ratio == own:
            return hand_out(one.record.name), ratio
        marker = store.find(one.text, engine, ratio, verbatim=policy.verbatim) if looks else None
        if marker is not None:
            return marker, ratio
    return None


def _record(engine: UltraGist, store: GistStore, text: str, name: str | None) -> SourceRecord | None:
    """Return the record that a reference names, if its memory is stored, is of this text and can be read here."""
    if name is None or name not in store:
        return None
    record = store.find_source(name)
    if record is None or record.text != text or len(record.recipe.ratios) != 1:
        return None
    try:
        check_recipe(record.recipe, engine)
    except MemoryMismatchError:
        return None
    return record


def _is_known(store: GistStore, name: str) -> bool:
    return name in store or store.find_source(name) is not None


def _passed(engine: UltraGist, store: GistStore, name: str) -> tuple[Condensed, int]:
    """Describe a text that is a marker already, and count its slots."""
    memory = store.get(name, engine)
    ratios = recipe_of(memory).ratios
    n_tokens = memory.progress.tokens if memory.progress is not None else 0
    marker = hand_out(name)
    return Condensed(marker, marker, n_tokens, ratios[0] if len(ratios) == 1 else None), memory.slots


def _weights(n_texts: int, scores: Sequence[int | float] | None) -> list[int]:
    """Return whole numbers in proportion to scores; without scores, falling with the rank."""
    if scores is None:
        return list(range(n_texts, 0, -1))
    if not all(math.isfinite(score) for score in scores):
        raise InputError(
            f"scores are {list(scores)}, but must be finite numbers: give a text without a score a low one."
        )
    low, high = min([0.0, *scores]), max([0.0, *scores])
    return [max(1, round(_WEIGHT * (score - low) / ((high - low) or 1.0))) for score in scores]


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what JSON can carry."""
    kept = {}
    for name, value in metadata.items():
        try:
            kept[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            _log.debug("metadata %s is not kept: JSON cannot carry it", name)
    return kept
