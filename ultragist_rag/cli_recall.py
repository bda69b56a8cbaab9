"""The command `ultragist-rag recall`."""

from __future__ import annotations

from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError

__all__ = ["recall"]


@one_line_errors
def recall() -> None:
    """Not there yet."""
    raise InputError("this command is being built.")
