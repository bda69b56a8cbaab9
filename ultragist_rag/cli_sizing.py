"""The command `ultragist-rag sizing`."""

from __future__ import annotations

from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError

__all__ = ["sizing"]


@one_line_errors
def sizing() -> None:
    """Not there yet."""
    raise InputError("this command is being built.")
