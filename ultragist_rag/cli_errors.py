"""How a command ends on wrong input: one line on stderr and exit code 2.

Is        a decorator that all commands share, and readers of options that may be wrong.
Flow      errors -> [cli_errors] -> the files of commands. Imports no torch.
Change    what a user sees when a command cannot go on.
Not here  the commands -> cli.py and its neighbours.
Holds     no traceback is shown for an error of ours, of the file system or of a package that is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NoReturn, ParamSpec

import typer

from ultragist_rag.errors import InputError, UltraGistError

__all__ = ["fail", "names", "one_line_errors", "whole_numbers"]

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


def names(text: str) -> list[str]:
    """Cut an option at its commas; nothing between two of them is no name."""
    return [part.strip() for part in text.split(",") if part.strip()]


def whole_numbers(parts: Iterable[str], complain: Callable[[str], str]) -> list[int]:
    """Read the parts of an option as numbers.

    Args:
        parts: What stood between commas.
        complain: What to say of a part that is none.

    Returns:
        The numbers, each at least 1.

    Raises:
        InputError: If a part is no whole number of at least 1.
    """
    found = list(parts)
    wrong = [part for part in found if not (part.isascii() and part.isdigit() and int(part))]
    if wrong:
        raise InputError(complain(wrong[0]))
    return [int(part) for part in found]
