"""The commands `ultragist-rag store ls`, `stats`, `verify`, `prune`, `migrate` and `rotate`.

Is        a typer app; each command opens a store, calls one function and prints what it returns, as a table or as JSON.
Flow      store -> [cli_store] -> cli. Importing it imports no torch: the commands do.
Change    options and tables of these commands.
Not here  what is done -> store/upkeep.py, store/rotation.py; how commands fail -> cli_errors.py.
Holds     results go to stdout, progress to stderr; `verify` ends with exit code 1 if it leaves damage behind.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError

if TYPE_CHECKING:
    from ultragist_rag.store import GistStore, Rotation

__all__ = ["app"]

app = typer.Typer(name="store", help="Look after a store of memories.", no_args_is_help=True)

DEFAULT = ".ultragist/gists"
WIDTH_IN_FILES = 140
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Url = Annotated[str, typer.Option("--store", help="Folder or URL.")]
Namespace = Annotated[str, typer.Option("--namespace", help="Name of the tenant.")]
SecretEnv = Annotated[str, typer.Option("--secret-env", help="Environment variable that holds the secret.")]
Options = Annotated[str, typer.Option("--options", help="JSON object for the client of a remote place.")]
Quantise = Annotated[str | None, typer.Option("--quantise", help="'int8' or 'int4'; else bit by bit.")]
MapFile = Annotated[Path | None, typer.Option("--map", help="Write old and new markers to this file as JSON.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.command()
@one_line_errors
def ls(
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """List the memories, the oldest first."""
    from ultragist_rag.store.upkeep import list_memories

    found = list(list_memories(_open(store, namespace, secret_env, options)))
    if as_json:
        _print_json([asdict(one) for one in found])
        return
    columns = ("marker", "stored", "slots", "ratio", "numbers", "bytes", "source")
    rows = (
        (
            one.marker,
            _date(one.stored),
            f"{one.slots:,}",
            ", ".join(map(str, one.ratios)),
            one.quantised or one.dtype,
            f"{one.n_bytes:,}",
            "yes" if one.has_source else "no",
        )
        for one in found
    )
    _print_table(columns, rows)


@app.command()
@one_line_errors
def stats(
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    as_json: AsJson = False,
) -> None:
    """Count what is there."""
    counts = _open(store, namespace, secret_env, options).stats()
    names = ("n_memories", "n_sources", "n_records", "n_bytes", "n_total_bytes")
    if as_json:
        _print_json({name: getattr(counts, name) for name in names})
        return
    words = ("memories", "source records", "records", "bytes", "bytes of all namespaces")
    rows = ((word, f"{getattr(counts, name):,}") for word, name in zip(words, names, strict=True))
    _print_table((f"namespace {namespace}", ""), rows)


@app.command()
@one_line_errors
def verify(
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    repair: Annotated[bool, typer.Option("--repair", help="Delete damaged memories that have a source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every file to the last byte; list the damaged ones."""
    from ultragist_rag.store.upkeep import verify as check

    n_files, damaged = check(_open(store, namespace, secret_env, options), repair=repair)
    left = [one for one in damaged if not (repair and one.can_be_made_again)]
    if as_json:
        _print_json({"n_files": n_files, "n_repaired": len(damaged) - len(left), "damaged": list(map(asdict, damaged))})
    else:
        if damaged:
            done = "deleted; made again when asked for" if repair else "with --repair"
            rows = ((one.key, one.what, done if one.can_be_made_again else "no") for one in damaged)
            _print_table(("file", "what is wrong", "repair"), rows)
        typer.echo(f"{n_files} files: {n_files - len(damaged)} whole, {len(damaged)} damaged")
    if left:
        raise typer.Exit(1)


@app.command()
@one_line_errors
def prune(  # noqa: PLR0913 - one parameter per option
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="Age at which to go: 90s, 15m, 12h, 30d.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", min=1, help="Bytes that may stay.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove memories by age or until the rest fits; and pages that no session names."""
    from ultragist_rag.store.upkeep import prune as remove

    seconds = None if older_than is None else _seconds(older_than)
    gone = remove(_open(store, namespace, secret_env, options), seconds, max_bytes)
    if as_json:
        _print_json(asdict(gone))
        return
    what = f"{gone.n_memories} memories, {gone.n_sources} source records, {gone.n_pages} pages"
    typer.echo(f"removed {what}: {gone.n_bytes:,} bytes")


@app.command()
@one_line_errors
def migrate(  # noqa: PLR0913 - one parameter per option
    to: Annotated[str, typer.Option("--to", help="Folder or URL of the other store.")],
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    to_namespace: Annotated[str | None, typer.Option("--to-namespace", help="If not the same.")] = None,
    to_secret_env: Annotated[str | None, typer.Option("--to-secret-env", help="If not the same.")] = None,
    to_options: Annotated[str, typer.Option("--to-options", help="As --options, for the other store.")] = "{}",
    quantise: Quantise = None,
    map_file: MapFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy everything to another place, namespace, secret or quantisation; an interrupted copy goes on."""
    if quantise not in (None, "int8", "int4"):
        raise InputError(f"quantise is {quantise!r}: give 'int8' or 'int4', or leave it out.")
    _check_map(map_file)
    old = _open(store, namespace, secret_env, options)
    new = _open(to, to_namespace or namespace, to_secret_env or secret_env, to_options, make=True)
    with _progress("Copying") as show:
        report = old.copy_to(new, quantise=quantise, progress=show)  # type: ignore[arg-type]
    _print_report(report, map_file, as_json)


@app.command()
@one_line_errors
def rotate(  # noqa: PLR0913 - one parameter per option
    new_secret_env: Annotated[str, typer.Option("--new-secret-env", help="Variable that holds the new secret.")],
    store: Url = DEFAULT,
    namespace: Namespace = "default",
    secret_env: SecretEnv = "ULTRAGIST_SECRET",
    options: Options = "{}",
    drop: Annotated[bool, typer.Option("--drop", help="Delete what cannot be given a new id.")] = False,
    map_file: MapFile = None,
    as_json: AsJson = False,
) -> None:
    """Sign everything with a new secret: every memory gets a new id; an interrupted run goes on."""
    _check_map(map_file)
    opened = _open(store, namespace, secret_env, options)
    with _progress("Moving") as show:
        report = opened.rotate(_secret(new_secret_env), drop=drop, progress=show)
    _print_report(report, map_file, as_json)


def _open(url: str, namespace: str, secret_env: str, options: str, *, make: bool = False) -> GistStore:
    """Open a store; a folder must be there, unless it is to be made."""
    from ultragist_rag.store import GistStore

    if not make and "://" not in url and not Path(url).expanduser().is_dir():
        raise InputError(f"there is no store in folder {url!r}. Name it: --store FOLDER-OR-URL")
    try:
        settings = json.loads(options)
    except ValueError as error:
        raise InputError(f"options are {options!r}, but must be a JSON object ({error}).") from error
    if not isinstance(settings, dict):
        raise InputError(f"options are {options!r}, but must be a JSON object.")
    secret = _secret(secret_env) if secret_env != "ULTRAGIST_SECRET" else None
    return GistStore.open(url, namespace, secret, options=settings)


def _check_map(path: Path | None) -> None:
    """Refuse a file that cannot be written before anything is moved."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"{str(path)!r} cannot be written: give --map a file in a folder that is there.")


def _secret(name: str) -> str:
    secret = os.environ.get(name)
    if not secret:
        raise InputError(f"environment variable {name} is empty or not set: it must hold the secret of the store.")
    return secret


def _seconds(age: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", age)
    if found is None:
        raise InputError(f"age is {age!r}: give a number and s, m, h or d, for instance 30d.")
    return float(found.group(1)) * _UNITS[found.group(2)]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M") if seconds else ""


def _print_report(report: Rotation, map_file: Path | None, as_json: bool) -> None:
    if map_file is not None:
        map_file.write_text(json.dumps(dict(report.markers), indent=2) + "\n", "utf-8")
    if as_json:
        _print_json(asdict(report))
        return
    if map_file is None and report.markers:
        _print_table(("old marker", "new marker"), report.markers.items())
    done = f"{len(report.markers)} memories and {report.n_records} records"
    left = f"{report.n_without_source} memories whose text was not kept, {len(report.damaged)} damaged files"
    typer.echo(f"{done}; left out: {left}")
    for marker in (*report.without_source, *report.damaged):
        typer.echo(f"left out: {marker}", err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH_IN_FILES)).print(table)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; yields what is to be told how far it is."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
