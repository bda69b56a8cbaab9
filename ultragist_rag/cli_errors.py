"""How a command ends on wrong input: one line on stderr and exit code 2.

Is        a decorator that all commands share.
Flow      errors -> [cli_errors] -> the files of commands. Imports no torch.
Change    what a user sees when a command cannot go on.
Not here  the commands -> cli.py and its neighbours.
Holds     no traceback is shown for an error of ours, of the file system or of a package that is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

from ultragist_rag.errors import UltraGistError

__all__ = ["fail", "one_line_errors"]

P = ParamSpec("P")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Let a command end in one line instead of a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UltraGistError as error:
            fail(str(error))
        except ModuleNotFoundError as error:
            fail(f"{error.name} is not installed. Run: pip install 'ultragist-rag[langchain,retrieval]'")
        except OSError as error:
            fail(str(error))

    return run


def fail(message: str) -> NoReturn:
    """Print a message as one line and leave with exit code 2."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)
