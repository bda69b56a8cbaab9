"""The command `ultragist-rag sizing`: bytes per document, before anything is compressed.

Is        the counts of sizing.py as a table or as JSON.
Flow      sizing -> [cli_sizing] -> cli. Imports neither torch nor a framework.
Change    what a row shows.
Not here  what is counted -> sizing.py.
Holds     what it prints depends on nothing but `--tokens` and the shape of the bundled model.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ultragist_rag.cli_errors import one_line_errors

__all__ = ["sizing"]

_WIDTH = 120


@one_line_errors
def sizing(
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of a document.", min=1)] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines, in bytes.")] = False,
) -> None:
    """Count the bytes of a stored document for common models, ratios and number formats."""
    from ultragist_rag.sizing import size_rows, sizes

    found = sizes(tokens)
    if as_json:
        typer.echo(json.dumps({"tokens": tokens, "sizes": [asdict(size) for size in found]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    head, *rows = size_rows(found)
    columns = (Column(name, justify="right" if name.startswith("ratio") else "left") for name in head)
    table = Table(*columns, title=f"KiB of a document of {tokens:,} tokens")
    for row in rows:
        table.add_row(*row)
    Console(width=_WIDTH).print(table)
