"""The command `ultragist-rag chat`: a conversation that is saved after every turn and goes on another day.

Is        a loop: a line that begins with a slash is a command about the session, any other one is asked.
Flow      session -> [cli_chat] -> cli. Importing it imports no torch: the command does.
Change    what can be typed, and what is shown of a session.
Not here  what a session does -> session.
Holds     what was answered is saved before the next line is read; wrong input changes nothing and ends no conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError, UltraGistError

if TYPE_CHECKING:
    from ultragist_rag import GistStore, UltraGist
    from ultragist_rag.session import GistSession

__all__ = ["chat"]

_HELP = """\
/turns         the turns so far
/forget N      take turn N out, as if it had never been
/rewind N      take turn N and all that follow out
/pin N         keep turn N at the lowest ratio
/fork NAME     keep a copy of the session under another name
/stats         what the session holds
/exit          leave; the session is saved already"""
_WIDTH = 100


@one_line_errors
def chat(  # noqa: PLR0913 - one parameter per option
    session: Annotated[str, typer.Option("--session", help="Name of the session; a new one begins, a known goes on.")],
    store: Annotated[str, typer.Option("--store", help="Folder or URL where sessions are kept.")] = ".ultragist/chats",
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    slots: Annotated[int | None, typer.Option("--slots", help="Memory slots for old turns.")] = None,
    recent: Annotated[int | None, typer.Option("--recent", help="Newest tokens that stay raw.")] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Whose sessions these are.")] = "default",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.", min=1)] = 64,
    source_bias: Annotated[
        float | None,
        typer.Option(
            help="Hold answers to the words of the session; 0 for not at all. Default: the model's own.", min=0
        ),
    ] = None,
) -> None:
    """Chat with a session that is kept: old turns become memories, the next call goes on where this one ended."""
    from ultragist_rag import GistStore, UltraGist

    engine = UltraGist.from_pretrained(model)
    opened = _open(engine, GistStore.open(store, namespace=namespace), session, slots, recent)
    typer.echo(f"{len(opened.turns())} turns so far; /help tells what can be typed.", err=True)
    for line in _lines():
        if line == "/exit":
            return
        try:
            if line.startswith("/"):
                _command(opened, line)
            else:
                _ask(opened, line, max_new_tokens=max_tokens, source_bias=source_bias)
        except UltraGistError as error:
            typer.echo(f"Error: {' '.join(str(error).split())}", err=True)


def _open(engine: UltraGist, store: GistStore, name: str, slots: int | None, recent: int | None) -> GistSession:
    from ultragist_rag.session import GistSession

    if name not in GistSession.names(store):
        return engine.session(slots, recent, store=store, name=name)
    if slots is not None or recent is not None:
        raise InputError(f"session {name!r} has begun with its own slots and recent tokens: leave these options out.")
    return GistSession.load(engine, store, name)


def _lines() -> Iterator[str]:
    """Yield what is typed or piped in, without blank lines, until it ends."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = "> "
        with suppress(ImportError):
            import readline  # noqa: F401 - from here on, lines can be edited
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line:
            yield line


def _ask(session: GistSession, line: str, **decoding: Any) -> None:
    """Show an answer as it comes; Ctrl-C ends it, and what was said until then is kept."""
    answer = session.ask(line, stream=True, **decoding)
    try:
        with closing(answer):
            for piece in answer:
                typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        pass
    typer.echo()
    session.save()


def _command(session: GistSession, line: str) -> None:
    name, _, value = line[1:].partition(" ")
    if name == "help":
        typer.echo(_HELP)
    elif name == "turns":
        for turn in session.turns():
            typer.echo(shorten(f"{turn.id} {turn.role} ({turn.state}): {turn.content}", _WIDTH, placeholder=" ..."))
    elif name == "stats":
        for key, count in asdict(session.stats()).items():
            label = key.removeprefix("n_") if key.startswith("n_") else f"{key} at most"
            typer.echo(f"{label.replace('_', ' ')}: {count}")
    elif name == "fork":
        session.fork(_word(value)).save()
    elif name in ("forget", "rewind", "pin"):
        change: Callable[[int], object] = getattr(session, name)
        change(_number(value))
        session.save()
    else:
        raise InputError(f"there is no command /{name}. Type /help for a list.")


def _word(value: str) -> str:
    if not value.strip():
        raise InputError("a name is missing: /fork NAME.")
    return value.strip()


def _number(value: str) -> int:
    if not (value.strip().isascii() and value.strip().isdigit()):
        raise InputError(f"{value.strip()!r} is not the number of a turn: /turns shows them.")
    return int(value)
