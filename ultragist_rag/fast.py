"""Which fast paths are taken: all, unless the environment asks for the plain way.

Is        the names of the fast paths, and `is_fast`, asked wherever one begins.
Flow      errors -> [fast] -> modeling, memory.
Change    add a name where a fast path is built; a test proves that both ways give the same.
Holds     a fast path changes how long something takes and what it needs, never what comes out, but for rounding.
"""

from __future__ import annotations

import os

from ultragist_rag.errors import InputError

__all__ = ["PATHS", "VARIABLE", "is_fast"]

PATHS = frozenset({"kept-rows", "split-attention", "one-forward", "one-rotation"})
"""`kept-rows`: the last two layers compute only what the slots that remain depend on. `split-attention`: raw rows use
the causal kernel without a mask, and only gists have one. `one-rotation`: keys of all layers are rotated at once.
`one-forward`: the first forward of generate reads the whole prompt."""

VARIABLE = "ULTRAGIST_PLAIN"
"""Environment variable with the fast paths that are not to be taken, separated by commas, or `all`."""


def is_fast(path: str) -> bool:
    """Tell whether a fast path may be taken.

    Args:
        path: One of `PATHS`.

    Returns:
        False if the environment asks for the plain way.

    Raises:
        InputError: If the environment names a path that there is not.

    Example:
        >>> is_fast("kept-rows") or os.environ[VARIABLE] != ""
        True
    """
    value = os.environ.get(VARIABLE, "")
    if not value:
        return True
    named = PATHS if value == "all" else {part.strip() for part in value.split(",")}
    if not named <= PATHS:
        raise InputError(f"{VARIABLE} is {value!r}, but must be 'all' or some of {', '.join(sorted(PATHS))}.")
    return path not in named
