"""Say in words what a run is, what stands in it, and what it cannot show.

Is        facts, notes and limits as lines of plain text; markup is added by those who write pages.
Flow      records, summary -> [about] -> tables, page, results_page.
Change    which facts are named, what counts as too small a score.
Holds     every line follows from the files of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ultragist_rag.evaluation.records import Run
from ultragist_rag.evaluation.summary import Cell, SuiteCell
from ultragist_rag.evaluation.wording import number

__all__ = ["facts", "is_too_small", "limits", "notes"]

_NOTHING_TO_KEEP = 0.05
"""Full-text scores below this leave nothing of which a share could be given."""

_STUDIED = 7_000_000_000
"""Parameters of the smaller base of the study (arXiv 2412.17483)."""

_FEW = 100
"""Samples of a task below which intervals are wide."""


def facts(run: Run) -> list[tuple[str, str]]:
    """Name what was run, on what, by which command.

    Args:
        run: The run.

    Returns:
        Pairs of name and value, without those that `run.json` does not hold.
    """
    told = run.facts
    versions = told.get("versions")
    settings = told.get("settings")
    pairs = [
        ("model", told.get("model")),
        ("fingerprint", told.get("fingerprint")),
        ("parameters", number(told.get("n_parameters"))),
        ("positions", number(told.get("n_positions"))),
        ("window", number(told.get("window"))),
        ("dtype", told.get("dtype")),
        ("bytes of a cache slot", number(told.get("bytes_per_slot"))),
        ("date", told.get("date")),
        ("device", told.get("device")),
        ("versions", _pairs(versions) if isinstance(versions, dict) else versions),
        ("settings", _pairs(settings) if isinstance(settings, dict) else settings),
        ("command", told.get("command")),
        (
            "records",
            f"{len(run.records)} lines, {sum(bool(one.skipped) for one in run.records)} of them skipped samples",
        ),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def is_too_small(full: Cell | SuiteCell | None) -> bool:
    """Tell whether the full text answers so little that no share of it means anything."""
    if isinstance(full, SuiteCell):
        return full.full_score < _NOTHING_TO_KEEP
    if full is None or full.task.lower_is_better:
        return False
    return full.score[0] < _NOTHING_TO_KEEP or full.task.is_guessed(full.score)


def notes(found: Sequence[Cell]) -> list[str]:
    """Say under a table what its rows cannot: tasks that are beyond the model, samples that were skipped.

    Args:
        found: The cells of the table.

    Returns:
        Lines.
    """
    lines = []
    for cell in found:
        if cell.condition.method == "full" and not cell.group and is_too_small(cell):
            why = "no share can be given" + (" (models of this size cannot do it)" if cell.task.lm_needed else "")
            guess = f", guessing {cell.task.chance:.2f}" if cell.task.chance else ""
            lines.append(f"{cell.task.name}: {why}: full text gives {cell.score[0]:.2f}{guess}.")
    skipped: dict[str, int] = {}
    for cell in found:
        if not cell.group and cell.n_skipped:
            skipped[cell.task.name] = skipped.get(cell.task.name, 0) + cell.n_skipped
    if skipped:
        counts = ", ".join(f"{count} of {name}" for name, count in skipped.items())
        lines.append(f"Skipped answers: {counts}; records.jsonl says why.")
    return lines


def limits(run: Run, found: Sequence[Cell]) -> list[str]:
    """Say in plain words what the numbers of a run cannot show.

    Args:
        run: The run.
        found: Its cells.

    Returns:
        Lines.
    """
    lines = []
    n_parameters = run.facts.get("n_parameters")
    if isinstance(n_parameters, int) and n_parameters < _STUDIED:
        lines.append(
            f"A base of {number(n_parameters)} parameters is not an 8B base: its scores cannot stand beside those of "
            "the study, and what a larger base keeps of its full text may be more or less."
        )
    lines.append(
        "What is kept is a share of what the same model answers from the full text. A high share of a low score says "
        "little; where the full text gives next to nothing, no share is given."
    )
    counts = [cell.n for cell in found if not cell.group and cell.n]
    if counts and min(counts) < _FEW:
        lines.append(
            f"Tasks have {_span(min(counts), max(counts))} answered samples. Intervals are over samples (bootstrap, 95 "
            "%): they do not cover another training run, other data or another wording of the prompt."
        )
    if any(cell.n and cell.score[1] == cell.score[2] for cell in found):
        lines.append("An interval without width means that all samples scored alike, not that the score is certain.")
    own = [task.name for task in run.tasks.values() if not task.source]
    if own:
        lines.append(f"Samples of our own making, not the published sets: {', '.join(own)}.")
    lines.append(
        "Times are of this machine and this run alone. The time to the first token begins with the question: memories "
        "are there by then, other methods read, choose or compress their text within it."
    )
    trained, asked = run.facts.get("ratios"), run.facts.get("settings", {}).get("ratios", [])
    if isinstance(trained, list) and (new := [str(one) for one in asked if one not in trained]):
        lines.append(f"The model was trained at ratios {', '.join(map(str, trained))}, not at {', '.join(new)}.")
    lines += _skip_limit(found)
    return lines


def _skip_limit(found: Sequence[Cell]) -> list[str]:
    n_skipped = sum(cell.n_skipped for cell in found if not cell.group)
    if not n_skipped:
        return []
    return [f"{n_skipped} answers were skipped. Shares and differences are over samples that both methods answered."]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _pairs(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name} {_plain(value)}" for name, value in values.items() if value not in (None, "", [], {}))


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return str(value)
