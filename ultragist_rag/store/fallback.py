"""Read the text of a document instead of its memory, where a calibration says that the memory does not stand for it.

Is        the decision, the text from the source record, a warning once for each engine, pieces that count such texts.
Flow      calibration, recipes, shelf -> [fallback] -> resolving, reading, reader.
Change    which memories are replaced.
Not here  the verdict on a ratio -> modeling/calibration.py; cutting prompts -> resolving.py.
Holds     without a calibration, or with a good one, nothing is looked up and nothing is replaced.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.store import refs
from ultragist_rag.store.recipes import check_recipe, recipe_of
from ultragist_rag.store.shelf import Shelf

__all__ = ["PromptPieces", "SourceText", "count_texts", "has_doubts", "text_instead", "warn_of_memory"]

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
_lock = threading.Lock()


class SourceText(str):
    """The text of a document that a prompt shows in the place of its memory; untrusted, as any text.

    Attributes:
        slots: Places of a prompt that it takes, one for each token.
    """

    slots: int

    def __new__(cls, text: str, slots: int) -> SourceText:
        """Keep the number of tokens beside the text."""
        made = super().__new__(cls, text)
        made.slots = slots
        return made


class PromptPieces(list[Any]):
    """Pieces of a prompt, and how many documents among them are read from their text instead of their memory."""

    n_from_text: int = 0

    @classmethod
    def of(cls, pieces: Iterable[Any], shown: Iterable[Any]) -> PromptPieces:
        """Collect pieces that were made of what the store showed."""
        made = cls(pieces)
        made.n_from_text = count_texts(shown)
        return made


def count_texts(pieces: Iterable[Any]) -> int:
    """Count the documents among some pieces that are read from their text instead of their memory."""
    return sum(isinstance(piece, SourceText) for piece in pieces)


def text_instead(shelf: Shelf, name: str, engine: Any) -> SourceText | None:
    """Return the text of a document, if its memory does not stand for it.

    Args:
        shelf: Where its source record is.
        name: Its id.
        engine: One that `has_doubts`.

    Returns:
        The text without look-alikes of markers; None if the memory is to be read, or there is no source record.

    Raises:
        MemoryMismatchError: If the memory is of another model, tokenizer or config than the engine.
        CorruptGistError: If the record is damaged.
    """
    if engine.tokenizer is None:
        return None
    record = shelf.source(name)
    if record is None or not _is_doubted(engine, record.recipe):
        return None
    check_recipe(record.recipe, engine)
    text = refs.neutralise(record.text)
    ratio = max(record.recipe.ratios)
    _warn_once(
        engine,
        "text",
        f"the calibration of this model says that independently compressed documents at ratio {ratio} do not stand for "
        "their text: prompts read the text from the source record instead, which takes more tokens. Compress at a "
        "lower ratio, or load the model with calibration=False to read the memories all the same.",
    )
    return SourceText(text, len(TextCodec.of(engine.tokenizer).encode(text)))


def warn_of_memory(memory: GistMemory, engine: Any) -> None:
    """Say that a memory is read although it does not stand for its text, since the text was not kept.

    Args:
        memory: A memory for which `text_instead` gave nothing.
        engine: One that `has_doubts`.
    """
    if _is_doubted(engine, recipe_of(memory)):
        _warn_once(
            engine,
            "memory",
            "the calibration of this model says that an independently compressed document of this prompt does not "
            "stand for its text, but there is no source record to read instead, so the memory is used. Store "
            "documents with keep_source=True, or compress them at a lower ratio.",
        )


def has_doubts(engine: Any) -> bool:
    """Say whether the calibration of an engine finds any ratio bad; without one, none is."""
    calibration = getattr(engine, "calibration", None)
    return calibration is not None and not all(map(calibration.is_good, calibration.ratios))


def _is_doubted(engine: Any, recipe: refs.Recipe) -> bool:
    ratio = max(recipe.ratios, default=0)
    is_independent = recipe.mode.partition("+")[0] == "independent"
    return is_independent and ratio > 0 and engine.calibration.is_good(ratio) is False


def _warn_once(engine: Any, what: str, text: str) -> None:
    with _lock:
        said = _warned.setdefault(engine, set())
        if what in said:
            return
        said.add(what)
    warnings.warn(text, stacklevel=6)
