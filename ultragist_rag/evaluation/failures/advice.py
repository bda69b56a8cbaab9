"""One line of advice from each kind of failure: about ratio, window and verbatim tokens.

Is        means and shares of full text's score, and a sentence that says what follows from them.
Flow      lines, tasks.failures, position -> [advice] -> report.
Change    from which numbers on something is advised.
Not here  plots and tables -> plots.py, tables.py.
Holds     every sentence gives the numbers that it rests on; where full text fails too, nothing is advised.
"""

from __future__ import annotations

from collections.abc import Sequence

from ultragist_rag.evaluation.failures.lines import Line, average, cells, pooled
from ultragist_rag.evaluation.failures.position import POSITION
from ultragist_rag.evaluation.tasks.failures import DIGITS

__all__ = ["advice"]

_SURPRISE, _ALONG, _CUT = "failures/surprise", "failures/along_the_way", "failures/boundary_cut"
_METRICS = {_SURPRISE: "subem", _ALONG: "first_4", _CUT: "subem"}
_KEPT = 0.9
_LEAST_FULL = 0.2
"""Score of the full text below which a task says nothing about memories."""

_NATS = 0.1
_GAP = 0.1


def advice(rows: Sequence[Line], *, kept: float = _KEPT) -> list[str]:
    """Say what follows from the failures of a run.

    Args:
        rows: Its lines.
        kept: Share of full text's score that memories should keep.

    Returns:
        At most one line each about ratio, window and verbatim tokens; fewer if lines are missing or full text fails.
    """
    shares = _shares(rows)
    good = _best(shares, kept)
    ratio = good if good is not None else min(shares, default=None)
    found = [_about_ratio(shares, good, kept), _about_window(rows, ratio), _about_verbatim(rows, ratio)]
    return [line for line in found if line]


def _share(rows: Sequence[Line], task: str, metric: str, ratio: int, word: str = "") -> float | None:
    """Share of full text's score that gists keep on the same samples; None where it cannot be told."""
    found = cells(rows, task, metric)
    full, gist = (
        pooled({group: scores for group, scores in found.get(cell, {}).items() if word in group})
        for cell in (("full", None), ("gist", ratio))
    )
    both = full.keys() & gist.keys()
    total = sum(full[name] for name in both)
    if not both or total / len(both) < _LEAST_FULL:
        return None
    return sum(gist[name] for name in both) / total


def _shares(rows: Sequence[Line]) -> dict[int, float]:
    """Mean share of full text's score over the tasks, by ratio."""
    ratios = sorted(
        {row["ratio"] for row in rows if row["method"] == "gist" and row["ratio"] and row["task"] in _METRICS}
    )
    found = {}
    for ratio in ratios:
        shares = [_share(rows, task, metric, ratio) for task, metric in _METRICS.items()]
        known = [share for share in shares if share is not None]
        if known:
            found[ratio] = sum(known) / len(known)
    return found


def _best(shares: dict[int, float], kept: float) -> int | None:
    """Highest ratio up to which all keep enough."""
    best = None
    for ratio, share in shares.items():
        if share < kept:
            break
        best = ratio
    return best


def _about_ratio(shares: dict[int, float], good: int | None, kept: float) -> str:
    if not shares:
        return ""
    worse = next((ratio for ratio in shares if good is None or ratio > good), None)
    falls = "" if worse is None else f" at {worse} to 1 it is {shares[worse]:.0%}."
    if good is None:
        return f"Ratio: no ratio measured keeps {kept:.0%} of full text's score;{falls} Take a lower one, or text."
    sure = f"Ratio: take at most {good} to 1, which keeps {shares[good]:.0%} of full text's score"
    return f"{sure};{falls}" if falls else f"{sure}; no higher one was measured."


def _about_window(rows: Sequence[Line], ratio: int | None) -> str:
    found = cells(rows, POSITION, "nll")
    full = found.pop(("full", None), None)
    if not full or not found:
        return ""
    measured = [cell for cell in found if cell[1] == ratio] or list(found)[:1]
    gist = found[measured[0]]
    above = [average(gist[group]) - average(full[group]) for group in full if group in gist]
    first, last = above[0], sum(above[len(above) // 2 :]) / len(above[len(above) // 2 :])
    numbers = (
        f"Window: at {measured[0][1]} to 1, tokens right behind a boundary lose {first:+.2f} nats to full text, those "
        f"of the second half of a window {last:+.2f}."
    )
    if first - last < _NATS:
        return f"{numbers} The boundary costs little: leave the window as it is."
    near = next(place for place, value in enumerate(above) if value <= (first + last) / 2 or place == len(above) - 1)
    return f"{numbers} Keep the newest tokens raw, at least {near / len(above):.0%} of a window."


def _about_verbatim(rows: Sequence[Line], ratio: int | None) -> str:
    if ratio is None:
        return ""
    words, numbers = (_share(rows, _SURPRISE, "subem", ratio, kind) for kind in ("word", "number"))
    digits = {n: _share(rows, _ALONG, f"first_{n}", ratio) for n in DIGITS}
    known = {n: share for n, share in digits.items() if share is not None}
    parts, lost = [], False
    if words is not None and numbers is not None:
        parts.append(f"numbers keep {numbers:.0%} of full text's score, words {words:.0%}")
        lost = numbers < words - _GAP
    if len(known) > 1:
        few, many = min(known), max(known)
        parts.append(f"the first digit of a code {known[few]:.0%}, the first {many} {known[many]:.0%}")
        lost = lost or known[many] < known[few] - _GAP
    if not parts:
        return ""
    end = "Keep exact values verbatim (verbatim='codes')." if lost else "Verbatim tokens are not needed for these."
    return f"Verbatim: at {ratio} to 1, {'; '.join(parts)}. {end}"
