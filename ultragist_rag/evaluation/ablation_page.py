"""Tell what an ablation found: table, figure and sentences from its record.

Is        intervals over the rows that were asked, the same for every variant; means over seeds within a row.
Flow      record of training.ablation, intervals -> [ablation_page] -> results_page, cli_ablate.
Paper     arXiv 2412.17483, tables 2 and 5 (architectures; autoencoding and token importance).
Change    columns, what a sentence says.
Not here  what is run and asked -> training/ablation.py.
Holds     every number is computed from the record; equal records give equal text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.intervals import Array, Interval, interval, ratio, sums
from ultragist_rag.evaluation.page import Section
from ultragist_rag.evaluation.tables import Grid
from ultragist_rag.evaluation.wording import interval_text, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Ablation", "Summary", "ablation_figure", "ablation_grid", "ablation_section", "read_ablation", "summaries"]

_BASE = "base"
_COUNTS = ("tokens", "right_tokens", "loss", "answers", "right")
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
_Key = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The record of an ablation.

    Attributes:
        facts: Command, date, machine, versions and plan.
        runs: The base first, then each finished variant and seed.
    """

    facts: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]

    @property
    def ratios(self) -> list[int]:
        """Raw tokens per gist that were asked at."""
        return [int(value) for value in self.facts["plan"]["asked"]["ratios"]]

    @property
    def names(self) -> list[str]:
        """Variants with a finished run, in the order of the plan."""
        done = {run["name"] for run in self.runs}
        return [variant["name"] for variant in self.facts["plan"]["variants"] if variant["name"] in done]

    @property
    def suites(self) -> list[str]:
        """What was asked."""
        return list(dict.fromkeys(cell["suite"] for cell in self.runs[0]["cells"]))


@dataclass(frozen=True, slots=True)
class Summary:
    """What one variant's memories keep, all suites and ratios together unless said otherwise.

    Attributes:
        name: The variant.
        seeds: Seeds that it was run with.
        tokens: Raw tokens that a run was trained on, on average.
        loss: Nats for each token of the answers.
        accuracy: Share of these tokens that were ranked first.
        exact: Share of answers with all tokens ranked first.
        kept: Such answers over those of the base from the full text, for each ratio.
        full: Such answers of the variant itself from the full text, over the same.
        other: The variant that it is compared with; none for the first of the plan.
        against: Token accuracy minus that of the other variant with the same seeds, paired; None if there is no other.
        seed_accuracy: Token accuracy of each seed.
    """

    name: str
    seeds: tuple[int, ...]
    tokens: float
    loss: Interval
    accuracy: Interval
    exact: Interval
    kept: Mapping[int, Interval]
    full: Interval
    other: str
    against: Interval | None
    seed_accuracy: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """The summary for JSON."""
        return asdict(self)


def read_ablation(path: Path) -> Ablation:
    """Read the record that `ultragist-rag ablate` wrote.

    Raises:
        InputError: If it is missing or damaged.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Ablation({key: value for key, value in facts.items() if key != "runs"}, facts["runs"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} holds no record of an ablation: {error}. `ultragist-rag ablate` writes one."
        ) from error


def summaries(record: Ablation) -> list[Summary]:
    """Sum every finished variant up, in the order of the plan."""
    return [_summary(record, name) for name in record.names]


def ablation_grid(record: Ablation) -> Grid:
    """Lay the variants out, one row each, below what the base does with the full text and with none."""
    base = _of(record, _BASE)[0]
    rows = []
    for method, label in (("full", "base, full text"), ("closed", "base, no text")):
        counts = _counts([base], [(method, None)])
        values = [_share(counts, "loss", "tokens"), _share(counts, "right_tokens", "tokens")]
        values += [_share(counts, "right", "answers")]
        rows.append([label, "", "", *map(interval_text, values), "", ""])
    for one in summaries(record):
        measured = [interval_text(value) for value in (one.loss, one.accuracy, one.exact)]
        against = "" if one.against is None else f"{_signed(one.against)}, {one.other}"
        seeds = ", ".join(map(str, one.seeds))
        rows.append([one.name, seeds, f"{one.tokens:,.0f}", *measured, against, interval_text(one.full)])
    head = ["variant", "seeds", "tokens", "loss (95 %)", "token accuracy (95 %)", "answers right (95 %)"]
    return Grid([*head, "token accuracy against (95 %)", "own full text over base's (95 %)"], rows, 1)


def ablation_section(record: Ablation) -> Section:
    """Make the section of docs/results.md: what was run, outcome of each variant, tables, figure."""
    plan = record.facts["plan"]
    asked = plan["asked"]
    first = _counts(_of(record, _BASE)[:1], [("full", None)])
    steps = {run["steps"] for run in record.runs[1:]}
    done = {(run["name"], run["seed"]) for run in record.runs}
    planned = [(variant["name"], seed) for variant in plan["variants"] for seed in variant["seeds"]]
    missing = [f"{name} with seed {seed}" for name, seed in planned if (name, seed) not in done]
    lines = [
        f"command: {record.facts['command']}",
        f"base: {plan['about']}".rstrip(": "),
        f"size: {number(record.facts['n_parameters'])} parameters; {record.facts['device']}; {record.facts['date']}",
        f"each run: {_span(steps)} steps; {_span({run['tokens'] for run in record.runs[1:]})} raw tokens",
        f"asked: {sum(first['answers']):,.0f} questions about {len(first['answers'])} documents (suites "
        f"{', '.join(record.suites)}), each from memories at {', '.join(map(str, record.ratios))} to 1, window "
        f"{asked['window']}; answers are scored under teacher forcing",
        *(f"{name}: {_about(record, name)}" for name in record.names),
        *_outcomes(record),
        *([f"in the plan, but not run: {', '.join(missing)}"] if missing else []),
    ]
    tables = {
        "All ratios together": ablation_grid(record),
        "Kept of the base's full text (answers with every token right) by suite and ratio": _kept_grid(record),
    }
    return Section(
        title="Ablation of training",
        lines=lines,
        tables=tables,
        figures={"Token accuracy by variant and ratio": ablation_figure(record)},
    )


def ablation_figure(record: Ablation) -> Figure:
    """Draw token accuracy of every variant, a mark with its interval for each ratio, the base's own as lines."""
    from matplotlib.figure import Figure

    names = record.names
    figure = Figure(figsize=(8.5, 1.4 + 0.42 * max(1, len(names))), layout="constrained")
    panel = figure.subplots()
    for place, one in enumerate(record.ratios):
        found = [_share(_counts(_of(record, name), [("gist", one)]), "right_tokens", "tokens") for name in names]
        middle = [value for value, _, _ in found]
        errors = [[v - low for v, low, _ in found], [high - v for v, _, high in found]]
        at = [row + 0.18 * (place - (len(record.ratios) - 1) / 2) for row in range(len(names))]
        colour, mark = _LOOKS[place % len(_LOOKS)]
        panel.errorbar(
            middle, at, xerr=errors, fmt=mark, color=colour, markersize=4.5, linewidth=1.1, label=f"{one} to 1"
        )
    for method, style in (("full", "--"), ("closed", ":")):
        value = _share(_counts(_of(record, _BASE), [(method, None)]), "right_tokens", "tokens")[0]
        label = f"base, {'full' if method == 'full' else 'no'} text"
        panel.axvline(value, color="#333333", linestyle=style, linewidth=1.0, label=label)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel("token accuracy of answers, teacher forcing, 95 % intervals over documents")
    panel.grid(visible=True, axis="x", color="#E3E3E3", linewidth=0.7)
    figure.legend(loc="outside right upper", fontsize=8.5, frameon=False)
    return figure


def _summary(record: Ablation, name: str) -> Summary:
    runs = _of(record, name)
    gists: list[_Key] = [("gist", value) for value in record.ratios]
    counts = _counts(runs, gists)
    full = _counts(_of(record, _BASE), [("full", None)])
    other = _other(record, name)
    by_seed = [_share(_counts([run], gists), "right_tokens", "tokens")[0] for run in runs]
    return Summary(
        name,
        tuple(run["seed"] for run in runs),
        float(np.mean([run["tokens"] for run in runs])),
        _share(counts, "loss", "tokens"),
        _share(counts, "right_tokens", "tokens"),
        _share(counts, "right", "answers"),
        {one: _over(_counts(runs, [("gist", one)])["right"], full["right"]) for one in record.ratios},
        _over(_counts(runs, [("full", None)])["right"], full["right"]),
        other,
        _against(runs, _of(record, other), gists) if other else None,
        tuple(by_seed),
    )


def _other(record: Ablation, name: str) -> str:
    """The variant that another is compared with, if it was run."""
    named = next(one.get("against") for one in record.facts["plan"]["variants"] if one["name"] == name)
    other = str(named or record.names[0])
    return other if other != name and other in record.names else ""


def _against(runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], cells: Sequence[_Key]) -> Interval:
    """Paired difference of token accuracy: over the seeds that both have, or else both first seeds."""
    shared = {run["seed"] for run in runs} & {run["seed"] for run in others}
    ours = [run for run in runs if run["seed"] in shared] or runs[:1]
    theirs = [run for run in others if run["seed"] in shared] or others[:1]
    mine, other = _counts(ours, cells), _counts(theirs, cells)
    right, held, tokens = sums(mine["right_tokens"], other["right_tokens"], mine["tokens"])
    return interval(ratio(right - held, tokens))


def _outcomes(record: Ablation) -> list[str]:
    """Say of every variant whether it is told apart from the first."""
    lines = []
    for one in summaries(record):
        if one.against is None:
            continue
        _, low, high = one.against
        verdict = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        lines.append(f"outcome: {one.name} against {one.other}: {_signed(one.against)}, {verdict}")
    for one in summaries(record):
        if len(one.seeds) > 1:
            each = ", ".join(f"{value:.3f}" for value in one.seed_accuracy)
            lines.append(f"seeds of {one.name}: token accuracy {each}")
    return lines


def _kept_grid(record: Ablation) -> Grid:
    rows = []
    for name in record.names:
        for suite in record.suites:
            full = _counts(_of(record, _BASE), [("full", None)], suite)["right"]
            kept = [_over(_counts(_of(record, name), [("gist", one)], suite)["right"], full) for one in record.ratios]
            rows.append([name, suite, *map(interval_text, kept)])
    return Grid(["variant", "suite", *(f"{one} to 1 (95 %)" for one in record.ratios)], rows, 2)


def _of(record: Ablation, name: str) -> list[Mapping[str, Any]]:
    return [run for run in record.runs if run["name"] == name]


def _counts(runs: Sequence[Mapping[str, Any]], cells: Sequence[_Key], suite: str | None = None) -> dict[str, Array]:
    """Counts of each row that was asked: summed over cells, means over runs."""
    found: dict[str, Array] = {}
    for name in _COUNTS:
        of_runs = [np.sum([_column(run, key, name, suite) for key in cells], axis=0) for run in runs]
        found[name] = np.mean(of_runs, axis=0)
    return found


def _column(run: Mapping[str, Any], key: _Key, name: str, suite: str | None) -> Array:
    """One count of every row of a cell, suites one behind the other."""
    cells = [cell for cell in run["cells"] if (cell["method"], cell["ratio"]) == key and suite in (None, cell["suite"])]
    return np.concatenate([np.array(cell[name], dtype=np.float64) for cell in cells])


def _share(counts: Mapping[str, Array], above: str, below: str) -> Interval:
    return interval(ratio(*sums(counts[above], counts[below])))


def _over(above: Array, below: Array) -> Interval:
    return interval(ratio(*sums(above, below)))


def _about(record: Ablation, name: str) -> str:
    return next(str(one["about"]) for one in record.facts["plan"]["variants"] if one["name"] == name)


def _signed(values: Interval) -> str:
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)


def _span(values: set[int]) -> str:
    return f"{min(values):,}" if len(values) == 1 else f"{min(values):,} to {max(values):,}" if values else "no"
