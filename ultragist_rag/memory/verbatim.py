"""Choose the tokens that keep their raw keys and values beside the gists.

Is        policies by name (`codes`, `regex`, `surprisal`, `both`, one's own), and how each is asked about tokens.
Flow      spans, surprisal -> [verbatim] -> ingest.py.
Paper     none.
Change    add a policy: one function here and its name in `_POLICIES`.
Not here  where verbatim slots stand -> layout/course.py; the rules -> spans.py, surprisal.py.
Holds     a policy gives one flag for each token, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ultragist_rag.errors import InputError
from ultragist_rag.memory.spans import Offsets, code_words, exact_words
from ultragist_rag.memory.surprisal import token_probabilities
from ultragist_rag.memory.text import Detokenizer, TextCodec
from ultragist_rag.modeling.attach import Attachment

__all__ = [
    "CUSTOM",
    "IMPROBABLE",
    "Passage",
    "Surprisal",
    "TextPolicy",
    "VerbatimPolicy",
    "choose",
    "policy_name",
    "policy_names",
    "register_policy",
]

CUSTOM = "custom"
"""What memories call a policy that has no name."""

TextPolicy = Callable[[str, Offsets], Sequence[bool] | NDArray[np.bool_]]
"""A rule of one's own: text and, for each token, its first character and the one behind the last; a flag for each."""

IMPROBABLE = 0.002
"""Tokens below this probability are kept by `surprisal`: what a good model does not foresee among 500 choices."""


@dataclass(frozen=True)
class Passage:
    """A row of tokens that a policy is asked about.

    Attributes:
        ids: Token ids, shape (tokens,).
        tokenizer: The tokenizer, or None.
        attachment: The model.
        lead_token: Token in front of every window, or None.
    """

    ids: Tensor
    tokenizer: Any
    attachment: Attachment
    lead_token: int | None

    @cached_property
    def text_and_offsets(self) -> tuple[str, Offsets]:
        """The text, and where each token stands in it. Special tokens have no characters.

        Raises:
            InputError: If there is no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError("a verbatim policy of text needs a tokenizer, but the engine has none: load one.")
        codec = TextCodec.of(self.tokenizer)
        detokenizer, parts, end, n_waiting = Detokenizer(codec), [], 0, 0
        offsets: list[tuple[int, int]] = []
        for token in self.ids.tolist():
            offsets.append((end, end))
            if token in codec.markup:
                continue
            n_waiting += 1
            text = detokenizer.push(token)
            if text:  # tokens of one character share it
                offsets[len(offsets) - n_waiting :] = [(end, end + len(text))] * n_waiting
                parts.append(text)
                end, n_waiting = end + len(text), 0
        return "".join(parts), offsets


@dataclass(frozen=True, slots=True)
class Surprisal:
    """Keep the tokens that the model alone finds improbable, and perhaps those of a text rule.

    Each window takes one more forward of the model.

    Attributes:
        below: Probability below which a token is kept.
        text: A rule whose tokens are kept, too.

    Raises:
        InputError: If `below` is no probability.
    """

    below: float = IMPROBABLE
    text: TextPolicy | None = None

    def __post_init__(self) -> None:
        """Check the bound."""
        if not 0 < self.below <= 1:
            raise InputError(f"below is {self.below!r}, but must be a probability above 0 and at most 1.")

    def flags(self, passage: Passage) -> Any:
        """Return a flag for each token of a passage."""
        probable = token_probabilities(passage.attachment, passage.ids, passage.lead_token)
        improbable = probable < self.below
        return improbable if self.text is None else improbable | np.asarray(_ask(self.text, passage), bool)


VerbatimPolicy = str | TextPolicy | Surprisal


def policy_names() -> tuple[str, ...]:
    """Return the names of all policies."""
    return tuple(_POLICIES)


def policy_name(policy: VerbatimPolicy | None) -> str:
    """Return what memories call a policy.

    Args:
        policy: A name, a rule, or None.

    Returns:
        The name; `custom` for a rule without one, empty for None.

    Raises:
        InputError: If there is no policy of this name.

    Example:
        >>> policy_name("regex"), policy_name(None), policy_name(lambda text, offsets: [])
        ('regex', '', 'custom')
    """
    if policy is None:
        return ""
    if not isinstance(policy, str):
        return CUSTOM
    if policy not in _POLICIES:
        raise InputError(
            f"there is no verbatim policy {policy!r}: take one of {', '.join(_POLICIES)}, or a function of text and "
            "offsets."
        )
    return policy


def register_policy(name: str, policy: TextPolicy | Surprisal) -> None:
    """Give a rule of one's own a name, by which stores know its memories.

    Memories are looked up by the name: give a changed rule another one.

    Args:
        name: A name that is not taken.
        policy: The rule.

    Raises:
        InputError: If the name is taken or empty.

    Example:
        >>> register_policy("tags", lambda text, offsets: [text[a:b].strip().startswith("#") for a, b in offsets])
        >>> "tags" in policy_names()
        True
    """
    if not name or name == CUSTOM or name in _POLICIES:
        raise InputError(f"the name {name!r} cannot be given to a verbatim policy: it is empty or taken. Take another.")
    _POLICIES[name] = policy


def choose(policy: VerbatimPolicy, passages: Sequence[Passage]) -> list[NDArray[np.bool_]]:
    """Ask a policy which tokens to keep.

    Args:
        policy: A name or a rule.
        passages: Rows of tokens.

    Returns:
        For each passage, a flag for each token.

    Raises:
        InputError: If there is no such policy, it needs a text and there is no tokenizer, or its answer does not fit.
    """
    name = policy_name(policy)
    rule = _POLICIES[policy] if isinstance(policy, str) else policy
    flags = []
    for passage in passages:
        one = np.asarray(rule.flags(passage) if isinstance(rule, Surprisal) else _ask(rule, passage))
        if one.shape != (len(passage.ids),) or (len(one) and one.dtype != np.bool_):
            raise InputError(
                f"the verbatim policy {name!r} gave an answer of shape {one.shape} and type {one.dtype} for "
                f"{len(passage.ids)} tokens: give True or False for each."
            )
        flags.append(one.astype(np.bool_))
    return flags


def _ask(policy: TextPolicy, passage: Passage) -> Any:
    return policy(*passage.text_and_offsets)


_POLICIES: dict[str, TextPolicy | Surprisal] = {
    "codes": code_words,
    "regex": exact_words,
    "surprisal": Surprisal(),
    "both": Surprisal(text=exact_words),
}
