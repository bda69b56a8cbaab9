"""Make docs/results.md from runs: what is kept beside the published, other methods, failure patterns, limits.

Further sections that belong to no run, the ablation of training for example, stand at the end.

Is        Markdown and pictures from the folders of runs; nothing is typed by hand.
Flow      records, tables, plots -> [results_page] -> docs.
Change    what the page shows of each run, in which order.
Not here  the report of a single run -> write.py, page.py.
Holds     equal runs give an equal page; every figure of it is in the records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.about import facts, limits
from ultragist_rag.evaluation.compare import comparison_lines, comparisons
from ultragist_rag.evaluation.page import Section
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.summary import cells, suite_cells
from ultragist_rag.evaluation.tables import cells_grid, is_failure, markdown, published_grid
from ultragist_rag.evaluation.wording import escape_markdown, file_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["results_figures", "results_markdown", "write_results"]

More = Callable[[Run], Section | None]
_INTRODUCTION = (
    "Every number of this page is computed from the records of the runs named here; the commands stand with each. "
    "*Kept of full* is the score over that of the full text by the same model on the same samples. Intervals are 95 %, "
    "by bootstrap over samples. The bundled model has editions: a run names the weights it was made with by their "
    "fingerprint; that of the weights shipped now stands in their card."
)


def results_markdown(
    runs: Sequence[Run], images: Mapping[str, str], *, more: Sequence[More] = (), last: Sequence[Section] = ()
) -> str:
    """Write the page.

    Args:
        runs: The runs, in the order of the page; their folders have different names.
        images: Address of each picture, by the names of `results_figures`; what is missing is not shown.
        more: Functions that make further sections of a run, the failure patterns for example; None leaves one out.
        last: Sections of no run, at the end.

    Returns:
        Markdown.

    Raises:
        InputError: If two runs have one name, or records do not fit their tasks.
    """
    _check_names(runs)
    parts = ["# Results", _INTRODUCTION, *(_run(run, images, more) for run in runs)]
    for section in last:
        parts += ["## " + escape_markdown(section.title), *_shown(section, images, file_name(section.title.lower()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def results_figures(
    runs: Sequence[Run], *, more: Sequence[More] = (), last: Sequence[Section] = ()
) -> dict[str, Figure]:
    """Draw what the page shows.

    Args:
        runs: The runs of the page.
        more: As for `results_markdown`.
        last: As for `results_markdown`.

    Returns:
        By name: what is kept by suite, perplexity, tasks on which gist memories are held against other methods, and
        the figures of further sections.

    Raises:
        InputError: If two runs have one name, or records do not fit their tasks.
    """
    from ultragist_rag.evaluation.plots import figures

    _check_names(runs)
    drawn = {}
    for run in runs:
        of_run = figures(run)
        wanted = ["overview", "perplexity", *(_task_image(name) for name in _compared(run))]
        drawn.update({f"{file_name(run.name)}-{name}": of_run[name] for name in wanted if name in of_run})
        for section in _sections(run, more):
            drawn.update(_figures(section, file_name(run.name)))
    for section in last:
        drawn.update(_figures(section, file_name(section.title.lower())))
    return drawn


def write_results(runs: Sequence[Run], path: Path, *, more: Sequence[More] = (), last: Sequence[Section] = ()) -> None:
    """Write the page and its pictures; pictures lie in `results/plots` beside it, older ones of these runs go.

    Args:
        runs: The runs of the page.
        path: The page.
        more: As for `results_markdown`.
        last: As for `results_markdown`.

    Raises:
        InputError: If two runs have one name, or records do not fit their tasks.
    """
    from ultragist_rag.evaluation.plots import png

    folder = path.parent / "results" / "plots"
    pictures = {name: png(figure) for name, figure in results_figures(runs, more=more, last=last).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for old in (old for run in runs for old in folder.glob(f"{file_name(run.name)}-*.png")):
        old.unlink(missing_ok=True)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    images = {name: f"results/plots/{name}.png" for name in pictures}
    path.write_text(results_markdown(runs, images, more=more, last=last), encoding="utf-8")


def _run(run: Run, images: Mapping[str, str], more: Sequence[More]) -> str:
    found = cells(run)
    told = {name: value for name, value in facts(run) if name != "command"}
    parts = [f"## {escape_markdown(run.name)}", f"```\n{_one_line(run.facts.get('command'))}\n```"]
    parts += ["\n".join(f"- {name}: {escape_markdown(value)}" for name, value in told.items())]
    parts += ["### Kept of the full text, beside the published", markdown(published_grid(suite_cells(run)))]
    parts += [_image(images, f"{file_name(run.name)}-overview", "Kept of the full text by suite and ratio")]
    parts += [_image(images, f"{file_name(run.name)}-perplexity", "Perplexity by ratio")]
    lines = comparison_lines(comparisons(run))
    if lines:
        parts += ["### Other methods at equal bytes", _bullets(lines)]
        parts += [_image(images, f"{file_name(run.name)}-{_task_image(name)}", name) for name in _compared(run)]
    for section in _sections(run, more):
        parts += [f"### {escape_markdown(section.title)}", *_shown(section, images, file_name(run.name))]
    parts += ["### Tasks", markdown(cells_grid([cell for cell in found if not cell.group and not is_failure(cell)]))]
    parts += ["### Limits", _bullets([*limits(run, found), *run.left_out])]
    return "\n\n".join(part for part in parts if part)


def _check_names(runs: Sequence[Run]) -> None:
    names = [file_name(run.name) for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{len(runs)} runs, but more than one is called {min(twice)!r}: rename the folder of one.")


def _compared(run: Run) -> list[str]:
    return list(dict.fromkeys(one.task.name for one in comparisons(run) if one.task.suite != "failures"))


def _sections(run: Run, more: Sequence[More]) -> list[Section]:
    return [section for make in more if (section := make(run)) is not None]


def _task_image(name: str) -> str:
    return f"task-{file_name(name)}"


def _shown(section: Section, images: Mapping[str, str], owner: str) -> list[str]:
    """Lines, tables and pictures of a section."""
    parts = [_bullets(section.lines)]
    parts += [f"{caption}:\n\n{markdown(grid)}" for caption, grid in section.tables.items()]
    return parts + [_image(images, _section_image(owner, caption), caption) for caption in section.figures]


def _figures(section: Section, owner: str) -> dict[str, Figure]:
    return {_section_image(owner, caption): figure for caption, figure in section.figures.items()}


def _section_image(owner: str, caption: str) -> str:
    return f"{owner}-{file_name(caption.lower())}"


def _image(images: Mapping[str, str], name: str, alt: str) -> str:
    return f"![{escape_markdown(alt)}]({images[name]})" if name in images else ""


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _one_line(value: object) -> str:
    return " ".join(str(value or "").replace("```", "").split())
