"""The command line: `ultragist-rag index`, `ask`, `demo`, `train`, `evaluate`, and those of cli_*.py.

Is        a typer app; each command calls one function and prints what it returns, as a table or, with --json, as JSON.
Flow      pipeline, training, evaluation -> [cli]. Importing it imports neither torch nor a framework: the commands do.
Change    commands and their options.
Not here  what is done -> pipeline.py, training, evaluation; how it looks -> console.py.
Holds     wrong input ends with one line on stderr and exit code 2; answers go to stdout, all else to stderr.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import typer

from ultragist_rag import (
    __version__,
    cli_ablate,
    cli_attribution,
    cli_bars,
    cli_calibrate,
    cli_chat,
    cli_eval,
    cli_recall,
    cli_sizing,
    cli_store,
)
from ultragist_rag.cli_errors import one_line_errors
from ultragist_rag.errors import InputError

app = typer.Typer(
    name="ultragist-rag",
    help="Compress documents once into gist memories, answer from them many times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_store.app, name="store")
app.command()(cli_chat.chat)
app.command()(cli_sizing.sizing)
app.command()(cli_recall.recall)
app.command()(cli_attribution.attribution)
app.command()(cli_calibrate.calibrate)
app.command("eval")(cli_eval.eval_command)
app.command()(cli_bars.bars)
app.command()(cli_ablate.ablate)
app.command()(cli_eval.results)

HOME = Path(".ultragist")
DEMO_FOLDER = Path("examples/corpus")
DEMO_QUESTIONS = Path("examples/questions.txt")
DEMO_HOME = Path(".ultragist-demo")
CORPUS_QUESTIONS = Path("examples/corpus_questions.jsonl")
TABLE_WIDTH = 120

Folder = Annotated[Path, typer.Argument(help="Folder with .txt and .md files.")]
Into = Annotated[Path, typer.Option("--into", help="Where index and memories go.")]
Model = Annotated[str, typer.Option("--model", help="'bundled', a folder or a hub id.")]
Ratio = Annotated[str, typer.Option("--ratio", help="Raw tokens per gist token; 'auto' takes the model's own.")]
Embeddings = Annotated[str, typer.Option("--embeddings", help="'hashing' or 'sentence-transformers:NAME'.")]
Passages = Annotated[int, typer.Option("--passages", "-k", help="Passages to read for each question.")]
Tokens = Annotated[int, typer.Option("--max-tokens", help="Longest answer in tokens.")]
SourceBias = Annotated[
    float | None,
    typer.Option(help="Hold answers to the words of the passages; 0 for not at all. Default: the model's own.", min=0),
]
Compare = Annotated[bool, typer.Option("--compare/--no-compare", help="Ask with full text too, and time both.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def main() -> None:
    """Run the command line."""
    app()


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"ultragist-rag {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
@one_line_errors
def index(
    folder: Folder = Path(),
    into: Into = HOME,
    model: Model = "bundled",
    ratio: Ratio = "auto",
    embeddings: Embeddings = "hashing",
    as_json: AsJson = False,
) -> None:
    """Cut the texts of a folder into passages, embed them, and compress each once."""
    from ultragist_rag.console import print_json, print_report, progress_bar
    from ultragist_rag.pipeline import IndexSettings, index_folder

    settings = IndexSettings(model, _parse_ratio(ratio), embeddings)
    with progress_bar() as progress:
        _, report = index_folder(folder, into, settings, progress)
    if as_json:
        print_json(report)
    else:
        print_report(report)


@app.command()
@one_line_errors
def ask(  # noqa: PLR0913 - one parameter per option
    questions: Annotated[list[str], typer.Argument(help="One question or several.")],
    home: Annotated[Path, typer.Option("--from", help="Where index and memories are.")] = HOME,
    model: Annotated[str | None, typer.Option("--model", help="Model, if not the one of the index.")] = None,
    passages: Passages = 4,
    max_tokens: Tokens = 32,
    source_bias: SourceBias = None,
    compare: Compare = True,
    as_json: AsJson = False,
) -> None:
    """Answer questions from the memories of an indexed folder."""
    from ultragist_rag.console import print_answers, print_json
    from ultragist_rag.pipeline import open_collection

    collection = open_collection(home, model)
    answers = collection.ask(questions, k=passages, max_tokens=max_tokens, source_bias=source_bias, compare=compare)
    if as_json:
        print_json(answers)
    else:
        print_answers(answers)


@app.command()
@one_line_errors
def demo(  # noqa: PLR0913 - one parameter per option
    folder: Folder = DEMO_FOLDER,
    questions: Annotated[Path, typer.Option("--questions", help="File with one question per line.")] = DEMO_QUESTIONS,
    into: Into = DEMO_HOME,
    model: Model = "bundled",
    ratio: Ratio = "auto",
    source_bias: SourceBias = None,
    as_json: AsJson = False,
) -> None:
    """Index the example corpus with the bundled model and answer a handful of questions in the words of the corpus."""
    from ultragist_rag.console import print_answers, print_json, print_report, progress_bar
    from ultragist_rag.pipeline import IndexSettings, index_folder

    asked = _read_questions(questions)
    with progress_bar() as progress:
        collection, report = index_folder(folder, into, IndexSettings(model, _parse_ratio(ratio)), progress)
    if not as_json:
        print_report(report)
    answers = collection.ask(asked, source_bias=source_bias)
    if as_json:
        print_json({"index": report, "answers": answers})
    else:
        print_answers(answers)


@app.command()
@one_line_errors
def train(  # noqa: PLR0913 - one parameter per option
    config: Annotated[Path, typer.Option("--config", help="YAML file; see docs/training.md.")],
    data: Annotated[Path | None, typer.Option("--data", help="Data folder, instead of the one in the file.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder of the run, instead of the file's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try one batch of every stage, change nothing.")] = False,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", help="Dry run from the base's shape alone, at 10^12 FLOPs a second; loads nothing."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after so long; the same command goes on later.", min=0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train gist parameters, and the base model if the file says so; a run that was stopped goes on."""
    from ultragist_rag.errors import TrainingError
    from ultragist_rag.training.config import TrainConfig
    from ultragist_rag.training.loop import Trainer

    settings = TrainConfig.read(config, data=data, output=output)
    if not dry_run:
        if tflops is not None:
            raise TrainingError(f"tflops is {tflops}, but the run is not a dry one. Add --dry-run, or leave it out.")
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        typer.echo(str(Trainer(settings).run(deadline=deadline)))
        return
    from ultragist_rag.console import print_json
    from ultragist_rag.training.forecast import forecast
    from ultragist_rag.training.report import report_lines

    report = Trainer(settings).dry_run() if tflops is None else forecast(settings, tflops)
    if as_json:
        print_json(report)
    else:
        typer.echo("\n".join(report_lines(report)))


@app.command()
@one_line_errors
def evaluate(  # noqa: PLR0913 - one parameter per option
    quantise: Annotated[str, typer.Option("--quantise", help="Number formats, such as 'int8,int4'.")] = "int8,int4",
    model: Model = "bundled",
    data: Annotated[Path | None, typer.Option("--data", help="Data folder; adds the factbook's own questions.")] = None,
    corpus: Annotated[Path, typer.Option("--corpus", help="Folder of profiles.")] = DEMO_FOLDER,
    questions: Annotated[Path, typer.Option("--questions", help="Their questions.")] = CORPUS_QUESTIONS,
    limit: Annotated[int | None, typer.Option("--limit", help="Questions of each set, spread evenly.", min=1)] = None,
    output: Annotated[Path | None, typer.Option("--output", help="File for the rows as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what memories lose that are stored in fewer bits: answers about held-out countries at ratio 4."""
    from ultragist_rag.console import print_rows
    from ultragist_rag.evaluation.quantised import evaluate_quantised, quantised_table

    compared = evaluate_quantised(model, data, (corpus, questions), quantise.split(","), limit)
    print_rows(compared, quantised_table(compared), output, TABLE_WIDTH, as_json=as_json)


def _parse_ratio(ratio: str) -> int | None:
    if ratio == "auto":
        return None
    if not ratio.isascii() or not ratio.isdigit() or int(ratio) < 1:
        raise InputError(f"ratio {ratio!r} is unknown: give a whole number of raw tokens per gist token, or 'auto'.")
    return int(ratio)


def _read_questions(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"file {str(path)!r} with questions does not exist. Name one: --questions FILE")
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"file {str(path)!r} with questions is not UTF-8 text. Convert it.") from error
    questions = [line.strip() for line in lines if line.strip()]
    if not questions:
        raise InputError(f"file {str(path)!r} holds no question. Put one on each line.")
    return questions
