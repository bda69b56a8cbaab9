"""The command `ultragist-rag sizing`: bytes per document, before anything is compressed.

Is        the counts of sizing.py as a table or as JSON.
Flow      sizing -> [cli_sizing] -> cli. Imports neither torch nor a framework.
Change    what a row shows.
Not here  what is counted -> sizing.py.
Holds     what it prints depends on nothing but `--tokens`.
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
    from ultragist_rag.sizing import sizes

    found = sizes(tokens)
    if as_json:
        typer.echo(json.dumps({"tokens": tokens, "sizes": [asdict(size) for size in found]}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "layers x kv heads x head dim", "ratio", "slots", *found[0].n_bytes, title="KiB a document")
    for size in found:
        shape = f"{size.model.n_layers} x {size.model.kv_heads} x {size.model.head_dim}"
        kib = (f"{n_bytes / 1024:,.1f}" for n_bytes in size.n_bytes.values())
        table.add_row(size.model.name, shape, str(size.ratio), str(size.slots), *kib)
    Console(width=_WIDTH).print(table)
