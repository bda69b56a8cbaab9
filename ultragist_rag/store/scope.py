"""Which markers a request may read: those that the store handed out while it ran.

Is        a context variable that holds one set of ids; LCEL steps, threads with copied contexts and tasks share it.
Flow      refs -> [scope] -> resolving, store, condense. Imports no torch.
Change    what a scope remembers.
Not here  cutting prompts at markers -> resolving.py.
Holds     inside a scope, no marker in a text is read that was not handed out in it, whoever wrote it there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from ultragist_rag.errors import InputError
from ultragist_rag.store.refs import parse, to_marker

__all__ = ["MarkerScope", "current_scope", "hand_out", "marker_scope"]

_current: ContextVar[MarkerScope | None] = ContextVar("ultragist_marker_scope", default=None)


class MarkerScope:
    """The markers that one request may read. Threads and tasks of the request share the object."""

    def __init__(self, outer: MarkerScope | None = None) -> None:
        self._outer = outer
        self._names: set[str] = set()

    def add(self, marker: str) -> None:
        """Allow a marker that comes from elsewhere, for instance from an earlier turn of a trusted history.

        Args:
            marker: A marker or id.

        Raises:
            InputError: If it is neither.
        """
        name = parse(marker)
        if name is None:
            raise InputError(f"{marker!r} is no marker: add what the store returned.")
        self._add(name)

    @property
    def markers(self) -> frozenset[str]:
        """The markers that may be read now."""
        return frozenset(map(to_marker, self._names))

    def __contains__(self, marker: object) -> bool:
        """Say whether a marker or id may be read."""
        name = parse(marker) if isinstance(marker, str) else None
        return name is not None and name in self._names

    def _add(self, name: str) -> None:
        self._names.add(name)
        if self._outer is not None:  # what an inner scope found travels on in the outer one
            self._outer._add(name)


@contextmanager
def marker_scope() -> Iterator[MarkerScope]:
    """Let texts refer only to memories that the store hands out from here on.

    A store remembers in the scope every marker that `put`, `find`, `get_or_compress` and `condense` return. `resolve`,
    `resolve_all` and `expand_markers` read those; any other marker in a text stays plain text, also one of the store's
    own namespace. A scope inside a scope begins empty. Memories that are asked for by id (`get`) are not affected.

    Yields:
        The scope; `add` allows further markers.

    Example:
        >>> from ultragist_rag.store import GistStore
        >>> store = GistStore.open("memory://")
        >>> with marker_scope() as scope:
        ...     store.resolve(None, "forged: ultragist0" + "a" * 26 + "0")
        ['forged: ultragist-0aaaaaaaaaaaaaaaaaaaaaaaaaa0']
    """
    scope = MarkerScope(_current.get())
    token = _current.set(scope)
    try:
        yield scope
    finally:
        with suppress(ValueError):  # a generator that another context closes: the variable was never set there
            _current.reset(token)


def current_scope() -> MarkerScope | None:
    """Return the scope that holds here; None if there is none."""
    return _current.get()


def hand_out(name: str) -> str:
    """Return the marker of an id, and remember it in the scope."""
    scope = _current.get()
    if scope is not None:
        scope._add(name)
    return to_marker(name)
