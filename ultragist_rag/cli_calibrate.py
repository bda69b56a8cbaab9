"""The command `ultragist-rag calibrate`: do composed memories answer like the plain text, as joint ones do?

Is        what evaluation/calibrate.py measures, as a table or JSON, and in a file beside the weights.
Flow      evaluation -> [cli_calibrate] -> cli. Importing it imports no torch: the command does.
Change    options, where the file goes.
Not here  what is measured -> evaluation/calibrate.py; the verdict -> modeling/calibration.py.
Holds     equal options and equal weights give equal figures; nothing is measured that could not be written.
"""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag.cli_errors import names, one_line_errors, whole_numbers
from ultragist_rag.errors import InputError

__all__ = ["calibrate"]

_WIDTH = 150


@one_line_errors
def calibrate(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")] = "bundled",
    ratios: Annotated[
        str | None, typer.Option("--ratios", help="Ratios to measure, if not those of the model.")
    ] = None,
    questions: Annotated[int, typer.Option("--questions", help="Built-in questions to ask.", min=1)] = 60,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", help="JSON lines with question, answers, documents, instead of the built-in ones."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="File to write, if not the one beside the weights.")
    ] = None,
    max_kl_share: Annotated[
        float | None, typer.Option("--max-kl-share", help="Share of the divergence without documents that may be left.")
    ] = None,
    max_agreement_loss: Annotated[
        float | None, typer.Option("--max-agreement-loss", help="Agreement with plain text that composing may lose.")
    ] = None,
    max_kl_factor: Annotated[
        float | None, typer.Option("--max-kl-factor", help="Or times the divergence of joint memories that is allowed.")
    ] = None,
    kl_slack: Annotated[
        float | None, typer.Option("--kl-slack", help="Nats added to both bounds of the divergence.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure whether documents compressed one by one answer like joint ones and plain text; keep it with the model."""
    from ultragist_rag.modeling.calibration import Thresholds

    limits = {
        "max_kl_share": max_kl_share,
        "max_agreement_loss": max_agreement_loss,
        "max_kl_factor": max_kl_factor,
        "kl_slack": kl_slack,
    }
    given = {name: value for name, value in limits.items() if value is not None}
    thresholds, file = Thresholds(**given), _file(model, output)
    wanted = None if ratios is None else _numbers(ratios)
    options = {"model": model} | ({"ratios": ",".join(map(str, wanted))} if wanted else {})
    options |= {"cases": str(cases)} if cases else {"questions": str(questions)}
    options |= {name: str(value) for name, value in given.items()}
    from ultragist_rag.console import print_json
    from ultragist_rag.engine import UltraGist
    from ultragist_rag.evaluation import calibrate as measuring

    asked = measuring.read_cases(cases) if cases else measuring.invented_cases(questions)
    measured = measuring.calibrate(
        UltraGist.from_pretrained(model, calibration=False),
        asked,
        wanted,
        thresholds=thresholds,
        command=shlex.join(["ultragist-rag", "calibrate", *_as_arguments(options)]),
    )
    measured.write(file)
    if as_json:
        print_json(measured.to_dict())
        return
    from rich.console import Console

    Console(width=_WIDTH).print(measuring.calibration_table(measured))
    typer.echo(f"written to {file}", err=True)


def _file(model: str, output: Path | None) -> Path:
    from ultragist_rag.modeling.calibration import CALIBRATION_FILE

    folder = Path(str(files("ultragist_rag") / "bundled")) if model == "bundled" else Path(model)
    if output is None and not folder.is_dir():
        raise InputError(f"{model!r} is no folder to write into: name a file with --output.")
    file = output or folder / CALIBRATION_FILE
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"{str(file)!r} is no file in a folder that exists: name another one with --output.")
    return file


def _as_arguments(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


def _numbers(text: str) -> list[int]:
    complaint = f"ratios are {text!r}: give whole numbers of at least 1, such as 2,4,8,16."
    found = whole_numbers(names(text), lambda _: complaint)
    if not found:
        raise InputError(complaint)
    return sorted(set(found))
