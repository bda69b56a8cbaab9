"""Write a run as one HTML page that needs nothing else: no network, no other file.

Is        texts and pictures of a run, put into the template of web/.
Flow      tables, plots, examples, about -> [page] -> write.
Change    what stands on the page, in which order.
Not here  layout -> web/page.html, web/page.css; sorting of tables -> web/page.js.
Holds     predictions are untrusted: all text is escaped, and the policy of the page lets only its own script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ultragist_rag.evaluation.about import facts, limits
from ultragist_rag.evaluation.compare import comparison_lines, comparisons
from ultragist_rag.evaluation.examples import examples
from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.summary import cells, suite_cells
from ultragist_rag.evaluation.tables import Grid, cells_grid, is_failure, published_grid
from ultragist_rag.evaluation.wording import file_name, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "page"]

_PLACES = {"limits": "limits", "kept": "kept of full text", "others": "other methods", "tasks": "tasks"}
_BYTES = "Marks of equal bytes are set slightly side by side."
_CAPTIONS = {
    "overview": "Score over that of the full text by ratio, with 95 % intervals, beside the published. Marks of one "
    "ratio are set slightly side by side.",
    "perplexity": "Perplexity by ratio, with 95 % intervals; lower is better.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page that another module makes, the failure patterns for example.

    Attributes:
        title: Its heading.
        lines: What it says, a sentence each.
        figures: What it shows, by caption.
        tables: The same for tables.
    """

    title: str
    lines: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Grid] = field(default_factory=dict)


def page(run: Run, images: Mapping[str, bytes], sections: Sequence[Section] = ()) -> str:
    """Write the page of a run.

    Args:
        run: The run.
        images: PNG by name, as `plots.figures` names them.
        sections: Parts that other modules make.

    Returns:
        The page.

    Raises:
        InputError: If records do not fit their tasks.
    """
    found, web = cells(run), files("ultragist_rag.evaluation").joinpath("web")
    css, js = (web.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    texts: dict[str, Any] = {
        "title": f"Evaluation of {run.facts.get('model') or run.name}",
        "facts": facts(run),
        "limits": limits(run, found),
        "published": published_grid(suite_cells(run)),
        "comparisons": comparison_lines(comparisons(run)),
        "tasks": cells_grid([cell for cell in found if not is_failure(cell)]),
        "failures": cells_grid([cell for cell in found if is_failure(cell)]),
        "examples": examples(run),
        "left_out": run.left_out,
        "overview": [_image(images[name], _caption(name, run)) for name in images if name == "overview"],
        "plots": [_image(images[name], _caption(name, run)) for name in images if name != "overview"],
        "sections": [_section(place, one) for place, one in enumerate(sections)],
    }
    texts["places"] = _places(texts)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    template = environment.from_string(web.joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(**texts, policy=_policy(css, js), css=Markup(css), js=Markup(js))


def _shown(value: Any) -> Any:
    """What stands in the page for a value: texts of the run with their hidden characters shown."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _policy(css: str, js: str) -> str:
    """Nothing is loaded from anywhere; the style and the script that may run are named by their hashes."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _image(data: bytes, alt: str) -> dict[str, str]:
    return {"data": base64.b64encode(data).decode(), "alt": alt}


def _caption(name: str, run: Run) -> str:
    task = next((task for task in run.tasks if name == f"task-{file_name(task)}"), name)
    return _CAPTIONS.get(name, f"{task}: score by bytes and by time to the first token, with 95 % intervals. {_BYTES}")


def _section(place: int, one: Section) -> dict[str, Any]:
    from ultragist_rag.evaluation.plots import png

    images = [_image(png(figure), caption) for caption, figure in one.figures.items()]
    return {"title": one.title, "lines": one.lines, "images": images, "tables": one.tables, "place": f"section-{place}"}


def _places(texts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the navigation leads to: only what is there."""
    shown = {"limits": texts["limits"], "others": texts["comparisons"]}
    places = [(name, label) for name, label in _PLACES.items() if shown.get(name, True)]
    places += [(one["place"], one["title"]) for one in texts["sections"]]
    if texts["failures"].rows and not texts["sections"]:
        places.append(("failures", "failure patterns"))
    places += [("examples", "examples")] if texts["examples"] else []
    return [*places, ("left-out", "left out")] if texts["left_out"] else places
