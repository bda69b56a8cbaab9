"""The command `ultragist-rag store`."""

from __future__ import annotations

import typer

__all__ = ["app"]

app = typer.Typer(name="store", help="Look after a store of memories.", no_args_is_help=True)
