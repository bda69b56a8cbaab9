"""When to shorten a conversation, and how much of it to keep: the sizes of LangChain's `SummarizationMiddleware`.

Is        `("messages", n)`, `("tokens", n)` and `("fraction", f)`, checked once and applied to counts.
Flow      settings -> [limits] -> history.py. Integers only.
Change    a new kind of size.
Holds     a size that cannot work is refused when it is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from ultragist_rag import InputError

__all__ = ["Clauses", "ContextSize", "Trigger", "check_size", "check_trigger", "first_kept", "is_reached"]

ContextSize: TypeAlias = tuple[Literal["messages", "tokens"], int] | tuple[Literal["fraction"], float]
"""Messages, tokens, or a fraction of the tokens that the model can read."""

Trigger: TypeAlias = ContextSize | Mapping[str, float] | Sequence[ContextSize | Mapping[str, float]]
"""One size, several of which one is enough (a list), or several that must all be reached (a mapping)."""

Clauses: TypeAlias = list[dict[str, float]]
"""One of these must be reached, and all of its sizes."""


def check_size(size: ContextSize, name: str) -> tuple[str, float]:
    """Check one size.

    Args:
        size: Kind and value.
        name: Of the setting, for the message.

    Returns:
        The size.

    Raises:
        InputError: If kind or value cannot be.
    """
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise InputError(f'{name} is {size!r}, but must be a pair such as ("messages", 20).')
    kind, value = size
    if kind not in {"messages", "tokens", "fraction"}:
        raise InputError(f"{name} is {size!r}: its kind must be messages, tokens or fraction.")
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    part = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    if not (part if kind == "fraction" else whole):
        wish = "above 0 and at most 1" if kind == "fraction" else "a whole number above 0"
        raise InputError(f"{name} is {size!r}: the number must be {wish}.")
    return kind, value


def check_trigger(trigger: Trigger | None) -> Clauses:
    """Check when to shorten.

    Args:
        trigger: As the middleware takes it.

    Returns:
        Clauses; none for None.

    Raises:
        InputError: If a size cannot be.
    """
    if trigger is None:
        return []
    items: Any = [trigger] if isinstance(trigger, tuple | Mapping) else trigger
    if isinstance(items, str) or not isinstance(items, Sequence) or not items:
        raise InputError(f'trigger is {trigger!r}, but must be a pair such as ("tokens", 4000), or a list of these.')
    return [_clause(item) for item in items]


def _clause(item: ContextSize | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(item, Mapping):
        return dict([check_size(item, "trigger")])
    if not item:
        raise InputError("a clause of trigger is empty: name messages, tokens or fraction.")
    return dict(check_size((kind, value), "trigger") for kind, value in item.items())  # type: ignore[arg-type]


def is_reached(
    clauses: Clauses, tokens: Callable[[], Sequence[int]], n_messages: int, limit: Callable[[], int]
) -> bool:
    """Say whether one clause is reached.

    Args:
        clauses: From `check_trigger`; without any, the answer is yes.
        tokens: Counts the tokens of each message; called only where a clause needs it.
        n_messages: Number of messages.
        limit: Tells how many tokens the model can read; called only where a clause needs it.

    Returns:
        Whether to shorten.
    """

    def reached(kind: str, value: float) -> bool:
        if kind == "messages":
            return n_messages >= value
        return sum(tokens()) >= (value if kind == "tokens" else value * limit())

    return not clauses or any(all(reached(*size) for size in clause.items()) for clause in clauses)


def first_kept(
    keep: tuple[str, float], tokens: Callable[[], Sequence[int]], n_messages: int, limit: Callable[[], int]
) -> int:
    """Return the place of the first message to keep; the last message is always kept.

    Args:
        keep: From `check_size`.
        tokens: Counts the tokens of each message.
        n_messages: Number of messages.
        limit: Tells how many tokens the model can read.

    Returns:
        A place; 0 if everything is kept.
    """
    kind, value = keep
    if kind == "messages":
        return max(0, n_messages - int(value))
    left = value if kind == "tokens" else value * limit()
    counts = tokens()
    place = n_messages
    while place > 0 and (left := left - counts[place - 1]) >= 0:
        place -= 1
    return min(place, max(0, n_messages - 1))
