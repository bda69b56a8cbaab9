"""From texts with markers to texts and memories.

Is        cutting the texts of a prompt at their markers, loading what is behind them, putting it in its place.
Flow      refs, scope, shelf, recipes, fallback -> [resolving] -> store.
Change    which markers of a prompt are read, how many slots they may take.
Not here  what a marker looks like -> refs.py; which ones a request may read -> scope.py.
Holds     each memory stands once, at its first place; no marker, whole or broken, is left in a text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, NoReturn, TypeVar

from ultragist_rag.errors import ContextOverflowError, GistNotFoundError, InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.store import refs
from ultragist_rag.store.fallback import SourceText, count_texts, has_doubts, text_instead, warn_of_memory
from ultragist_rag.store.quantise import as_stored
from ultragist_rag.store.recipes import BATCH, Compressor, can_repeat, expected_by, repeat
from ultragist_rag.store.scope import current_scope
from ultragist_rag.store.shelf import Shelf
from ultragist_rag.store.source import SourceRecord

__all__ = ["check_lists", "cut", "is_here", "load", "put_in_place", "refuse"]

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found", GistMemory, SourceText)


def check_lists(texts: Sequence[str], **lists: Sequence[Any] | None) -> None:
    """Check that there is a list of texts, and as much of everything else.

    Args:
        texts: The texts.
        lists: By name, what there must be one of for each text; None is not checked.

    Raises:
        InputError: If something else was given.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("texts must be a list of texts: put a single one into a list.")
    for name, values in lists.items():
        if values is not None and len(values) != len(texts):
            raise InputError(f"{len(values)} {name} for {len(texts)} texts: give one each.")


def cut(texts: Sequence[str], is_known: Callable[[str], bool] | None = None) -> list[list[str | refs.Ref]]:
    """Cut texts at their markers, after mending those that line wrapping broke.

    Args:
        texts: The texts of a prompt.
        is_known: Says of an id whether it may be read; others stay text. None for all that the scope allows.

    Returns:
        For each text, its parts in reading order. Markers that are not to be read are neutralised.

    Raises:
        InputError: If there is something else than texts, or a part of a marker.
    """
    check_lists(texts)
    scope = current_scope()
    allowed: dict[str, bool] = {}

    def is_allowed(name: str) -> bool:
        if name not in allowed:
            allowed[name] = (scope is None or name in scope) and (is_known is None or is_known(name))
            if not allowed[name]:
                _log.warning("the marker of %s is left as text", name)
        return allowed[name]

    return [_cut_one(refs.repair(text), is_allowed) for text in texts]


def _cut_one(text: str, is_allowed: Callable[[str], bool]) -> list[str | refs.Ref]:
    broken = refs.find_broken(text)
    if broken is not None:
        raise InputError(
            f"{broken!r} is a part of a marker: something cut it, most likely a text splitter. Split documents before "
            "they are compressed, never afterwards, and keep chunks longer than a marker (37 characters, about 30 "
            "tokens); pass text that is not to be trusted through neutralise."
        )
    return [
        part if isinstance(part, str) or is_allowed(part.name) else refs.neutralise(text[part.start : part.stop])
        for part in refs.split(text)
    ]


def put_in_place(
    parts: Iterable[Sequence[str | refs.Ref]], memories: Mapping[str, GistMemory | SourceText]
) -> list[list[str | GistMemory]]:
    """Put each memory at the first place of its marker; later ones vanish, and texts that meet are joined.

    A text that stands in the place of a memory is a piece of its own.

    Args:
        parts: What `cut` returned.
        memories: By id.

    Returns:
        For each text, texts and memories in reading order.
    """
    left = dict(memories)
    placed: list[list[str | GistMemory]] = []
    for row in parts:
        pieces: list[str | GistMemory] = []
        for part in row:
            piece = part if isinstance(part, str) else left.pop(part.name, None)
            last = pieces[-1] if pieces else None
            if isinstance(piece, str) and isinstance(last, str) and not count_texts((piece, last)):
                pieces[-1] = last + piece
            elif piece is not None:
                pieces.append(piece)
        placed.append(pieces)
    return placed


class _Budget:
    """Counts slots as memories come, and stops when there are too many."""

    def __init__(self, n_memories: int, max_slots: int | None) -> None:
        self.n_memories = n_memories
        self.max_slots = max_slots
        self._n_slots = self._n_counted = self._n_texts = 0

    def add(self, found: _Found) -> _Found:
        self._n_slots += found.slots
        self._n_counted += 1
        self._n_texts += count_texts([found])
        if self.max_slots is not None and self._n_slots > self.max_slots:
            texts = f" ({self._n_texts} read from their text, as the calibration demands)" if self._n_texts else ""
            raise ContextOverflowError(
                f"{self._n_counted} of the {self.n_memories} memories of this prompt{texts} take {self._n_slots} "
                f"slots, but max_slots is {self.max_slots}. Ask about fewer documents, compress them at "
                f"{'a lower' if self._n_texts else 'a higher'} ratio, or raise max_slots."
            )
        return found


def load(
    shelf: Shelf,
    names: Iterable[str],
    engine: Compressor | None,
    max_slots: int | None = None,
    *,
    as_shown: bool = False,
) -> tuple[dict[str, GistMemory | SourceText], int]:
    """Read memories; make those again that are gone, given an engine to do it and a source record for each.

    Args:
        shelf: Where they are.
        names: Different ids.
        engine: Checks them and makes them again; None for neither.
        max_slots: Slots that all may take together; reading stops at the first that is too much, and at what
            is under way beside it.
        as_shown: Whether to read the text of a document where the calibration of the engine prefers it.

    Returns:
        Memories, or texts in their places, by id, and how many memories were made again.

    Raises:
        GistNotFoundError: If one is neither here nor can be made again.
        ContextOverflowError: If they take more slots than `max_slots`.
        MemoryMismatchError: If one is of another model, tokenizer or config than the engine.
        CorruptGistError: If a file is damaged.
    """
    wanted = list(names)
    budget = _Budget(len(wanted), max_slots)
    device = getattr(getattr(engine, "model", None), "device", None)
    found: dict[str, GistMemory | SourceText] = {}
    missing: list[SourceRecord] = []
    doubts = as_shown and has_doubts(engine)
    ahead = [] if doubts else wanted  # texts may be read instead of memories then, and count until there are too many
    with closing(shelf.memories(ahead, [expected_by(engine, name) for name in ahead], device)) as memories:
        for name in wanted:
            text = text_instead(shelf, name, engine) if doubts else None
            if text is not None:
                found[name] = budget.add(text)
                continue
            memory = shelf.memory(name, expected_by(engine, name), device) if doubts else next(memories)
            if memory is not None:
                if doubts:
                    warn_of_memory(memory, engine)
                found[name] = budget.add(memory)
                continue
            missing.append(_record(shelf, name, engine) or refuse(shelf, name))
    if engine is not None and missing:
        _log.info("%d evicted memories are made again", len(missing))
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            for record, memory in zip(batch, repeat(engine, batch), strict=True):
                shelf.save(memory, record, keep_source=True)
                found[record.name] = budget.add(as_stored(memory, record.recipe.quantise))
    return found, len(missing)


def is_here(shelf: Shelf, name: str, engine: Compressor | None) -> bool:
    """Say whether `load` would find a memory or could make it."""
    return shelf.has(name) or _record(shelf, name, engine) is not None


def _record(shelf: Shelf, name: str, engine: Compressor | None) -> SourceRecord | None:
    """Return the record that a memory can be made of again."""
    record = shelf.source(name) if engine is not None else None
    return record if record is not None and can_repeat(record.recipe) else None


def refuse(shelf: Shelf, name: str) -> NoReturn:
    """Say that there is no memory, in words that do not tell why."""
    _log.warning("no memory for %s in namespace %s", name, shelf.namespace)
    raise GistNotFoundError(
        f"there is no memory for {name} in this namespace: it was never stored here, was deleted, has expired, or had "
        "to make room. Compress the document again, or pass the engine so that it is made again from its source record."
    )
