"""The command line: `python -m benchmarks run` measures, `python -m benchmarks report` makes the page.

Is        two commands; options are names that are looked up.
Flow      run, report -> [__main__].
Change    options.
Not here  what the commands do -> run.py, report.py.
Holds     wrong input ends in one line that names what is known, before anything is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ultragist_rag.cli_errors import one_line_errors

if TYPE_CHECKING:
    from benchmarks.suite import Size

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_RESULTS = Path("benchmarks/results")
_PAGE = Path("docs/performance.md")


@app.command("run")
@one_line_errors
def run(  # noqa: PLR0913 - one parameter per option
    suite: Annotated[str, typer.Option("--suite", help="Names between commas, or all.")],
    model_shape: Annotated[str, typer.Option("--model-shape", help="llama-3-8b, qwen2-7b, bundled or tiny.")],
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")] = "auto",
    repeats: Annotated[int | None, typer.Option("--repeats", help="Rounds at most, 3 or more.", min=3)] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="For each suite, beyond 3 rounds.", min=0)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small grids: about a minute for each suite.")] = False,
    output: Annotated[Path, typer.Option("--output", help="Folder for result files.")] = _RESULTS,
) -> None:
    """Run suites, and write one file for each."""
    from benchmarks.run import find_device, find_dtype, make_bench, run_suites
    from benchmarks.shapes import find_shape
    from benchmarks.suites import find_suites

    suites, shape, where = find_suites(suite), find_shape(model_shape), find_device(device)
    number_format = find_dtype(dtype, where)
    size: Size = "minimal" if shape.name == "tiny" else "quick" if quick else "full"
    bench = make_bench(shape, where, number_format, size, seconds, repeats)
    for path in run_suites(suites, bench, output):
        typer.echo(f"wrote {path}")


@app.command("report")
@one_line_errors
def report(
    results: Annotated[Path, typer.Option("--results", help="Folder of result files.")] = _RESULTS,
    page: Annotated[Path, typer.Option("--page", help="The page; plots go beside it.")] = _PAGE,
) -> None:
    """Make the page of all result files."""
    from benchmarks.record import read_records
    from benchmarks.report import write_page

    records = read_records(results)
    write_page(records, page)
    typer.echo(f"wrote {page} from {len(records)} files")


if __name__ == "__main__":
    app()
