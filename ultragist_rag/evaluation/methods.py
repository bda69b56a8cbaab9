"""Ways to show a context to the model: as it is, as memories, or cut down to as many cache slots.

Is        one function for each method: the context of a sample in, prompt pieces and their cache slots out.
Flow      task, engine -> [methods] -> asking, runner.
Paper     BM25: Robertson and Zaragoza 2009, by the library bm25s; cutting the middle out: LongBench, arXiv 2308.14508.
Change    add a method: one function here and its name in `_METHODS`.
Not here  methods of other packages, which need an environment of their own -> peers; asking -> asking.py.
Holds     what a method shows takes no more slots than gist memories at the same ratio or budget; all slots count,
          separators and raw tokens too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.peers import PEERS
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.layout.budget import slots_of
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import Piece
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.memory.verbatim import policy_name

__all__ = ["Context", "Shown", "check_methods", "count_tokens", "has_ratio", "is_prepared", "show", "slots_at"]

_LONGEST_UNIT = 400
"""Characters of what BM25 chooses among: lines, and sentences of longer lines."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The context of one sample, and how small it is to become.

    Attributes:
        engine: The model that will read it.
        sample: The sample.
        separator: What stands between documents.
        ratio: Raw tokens per gist; None for methods that keep everything.
        slots: Cache slots that it may take; None for methods that keep everything.
    """

    engine: UltraGist
    sample: Sample
    separator: str
    ratio: int | None = None
    slots: int | None = None

    @property
    def text(self) -> str:
        """All documents as one text."""
        return self.separator.join(self.sample.documents)

    @property
    def n_tokens(self) -> int:
        """Tokens of all documents as one text."""
        return count_tokens(self.engine, self.text)

    def ids(self, text: str) -> torch.Tensor:
        """Return the token ids of a text, shape (tokens,)."""
        return TextCodec.of(self.engine.tokenizer).encode(text)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a method made of a context.

    Attributes:
        pieces: What stands between head and tail of the prompt.
        slots: Cache slots that it takes.
    """

    pieces: list[Piece]
    slots: int


@lru_cache(maxsize=1024)
def _count(codec: TextCodec, text: str) -> int:
    return len(codec.encode(text))


def count_tokens(engine: UltraGist, text: str) -> int:
    """Count the tokens of a text; the same text, as every method and ratio asks for it, is tokenised once."""
    return _count(TextCodec.of(engine.tokenizer), text)


def check_methods(names: Sequence[str]) -> list[str]:
    """Check names of methods, and name verbatim policies by themselves.

    Args:
        names: `full`, `closed`, `gist`, `joint`, `gist+POLICY` (`gist+verbatim` means `gist+codes`), `truncate`,
            `bm25`, or a peer such as `kvpress:snapkv`.

    Returns:
        The names, each once, `full` first: everything is held against it.

    Raises:
        InputError: If a name is unknown.
    """
    checked = []
    for name in names:
        base, _, policy = name.partition("+")
        if base == "gist" and policy:
            checked.append(f"gist+{'codes' if policy == 'verbatim' else policy_name(policy)}")
        elif name in _METHODS or name in PEERS:
            checked.append(name)
        else:
            raise InputError(
                f"method {name!r} is unknown. There are {', '.join(_METHODS)}, gist+POLICY and {', '.join(PEERS)}."
            )
    return list(dict.fromkeys(["full", *checked]))


def is_prepared(method: str) -> bool:
    """Tell whether a method works on documents alone, so that it is done before a question comes."""
    return method.partition("+")[0] in ("gist", "joint")


def has_ratio(method: str) -> bool:
    """Tell whether a method makes the context smaller, so that it is measured at every ratio."""
    return method not in ("full", "closed")


def slots_at(context: Context) -> int:
    """Count the cache slots of composed gist memories at the ratio of a context, without making them.

    Args:
        context: With a ratio.

    Returns:
        Slots of all memories and tokens of the separators between them.
    """
    window, ratio = context.engine.config.window, context.ratio or 1
    lengths = (count_tokens(context.engine, document) for document in context.sample.documents)
    return sum(slots_of(n, ratio, window) for n in lengths) + _n_separators(context)


def show(method: str, context: Context) -> Shown:
    """Show a context by a method.

    Args:
        method: A checked name that is no peer.
        context: What is shown.

    Returns:
        Pieces and slots.

    Raises:
        InputError: If the context is empty.
    """
    if method.startswith("gist+"):
        return _gist_verbatim(context, method.removeprefix("gist+"))
    return _METHODS[method](context)


def _full(context: Context) -> Shown:
    return Shown([context.text], context.n_tokens)


def _closed(_context: Context) -> Shown:
    return Shown([], 0)


def _gist(context: Context) -> Shown:
    return _compose(context, context.engine.compress(list(context.sample.documents), ratio=context.ratio))


def _gist_verbatim(context: Context, policy: str) -> Shown:
    """Memories of no more slots than plain ones, with verbatim tokens where they fit."""
    documents = context.sample.documents
    memories = context.engine.compress(list(documents), ratio=context.ratio)
    return _compose(context, [_mixed(context, *both, policy) for both in zip(documents, memories, strict=True)])


def _mixed(context: Context, document: str, plain: GistMemory, policy: str) -> GistMemory:
    try:
        return context.engine.compress(document, ratio=context.ratio, slots=plain.slots, verbatim=policy)
    except InputError:  # not even the highest ratio leaves room for what the policy chooses
        return plain


def _compose(context: Context, memories: Sequence[GistMemory]) -> Shown:
    pieces: list[Piece] = []
    for memory in memories:
        pieces += [memory, context.separator] if context.separator else [memory]
    kept = pieces[:-1] if context.separator else pieces
    return Shown(kept, sum(memory.slots for memory in memories) + _n_separators(context))


def _n_separators(context: Context) -> int:
    if not context.separator:
        return 0
    return count_tokens(context.engine, context.separator) * (len(context.sample.documents) - 1)


def _joint(context: Context) -> Shown:
    memory = context.engine.compress(
        context.sample.head + context.text, ratio=context.ratio, slots=context.slots, joint=True
    )
    return Shown([memory], memory.slots)


def _truncate(context: Context) -> Shown:
    """The first and the last tokens, half of the room each."""
    ids = context.ids(context.text)
    room = min(len(ids), context.slots or len(ids))
    if room == len(ids):
        return Shown([ids], room)
    first = room - room // 2
    parts: list[Piece] = [part for part in (ids[:first], ids[len(ids) - room // 2 :]) if len(part)]
    return Shown(parts, room)


def _bm25(context: Context) -> Shown:
    """The lines nearest to the question, as many as fit, in reading order."""
    import bm25s

    units = [unit for document in context.sample.documents for unit in _units(document)]
    if not any(re.search(r"\w", unit) for unit in units):
        raise InputError("the context has no words that could be looked for.")
    sizes = [len(context.ids(unit + "\n")) for unit in units]
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(units, stopwords=None, show_progress=False), show_progress=False)
    query = bm25s.tokenize(
        [context.sample.tail.strip() or units[-1]], stopwords=None, show_progress=False, return_ids=False
    )[0]
    scores = retriever.get_scores(query) if query else [0.0] * len(units)
    ranked = sorted(range(len(units)), key=lambda place: (-float(scores[place]), place))
    left, kept = context.slots if context.slots is not None else sum(sizes), []
    for place in ranked:
        if sizes[place] <= left:
            left -= sizes[place]
            kept.append(place)
    if not kept:  # the best one, as far as there is room
        ids = context.ids(units[ranked[0]])[:left]
        return Shown([ids], len(ids))
    text = "\n".join(units[place] for place in sorted(kept))
    return Shown([text], len(context.ids(text)))


def _units(document: str) -> list[str]:
    lines = [line.strip() for line in document.splitlines() if line.strip()]
    return [
        unit for line in lines for unit in (_SENTENCE_END.split(line) if len(line) > _LONGEST_UNIT else [line]) if unit
    ]


_METHODS: dict[str, Callable[[Context], Shown]] = {
    "full": _full,
    "closed": _closed,
    "gist": _gist,
    "joint": _joint,
    "truncate": _truncate,
    "bm25": _bm25,
}
