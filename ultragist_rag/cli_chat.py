"""The command `ultragist-rag chat`."""

from __future__ import annotations

from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError

__all__ = ["chat"]


@one_line_errors
def chat() -> None:
    """Not there yet."""
    raise InputError("this command is being built.")
