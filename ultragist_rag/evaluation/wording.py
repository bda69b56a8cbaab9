"""Write numbers, names and texts of a run so that they can be shown anywhere.

Is        pure functions of values and strings.
Flow      [wording] -> about, tables, plots, page, results_page.
Change    how a number looks, which characters are shown as their numbers.
Holds     what is returned is one name, one cell or one text: nothing in it is obeyed by what shows it.
"""

from __future__ import annotations

import math
import re
import unicodedata

from ultragist_rag.evaluation.intervals import Interval

__all__ = ["escape_markdown", "file_name", "interval_text", "number", "visible"]

_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
"""Unicode's classes of control, format and private characters, and of line separators."""


def interval_text(values: Interval) -> str:
    """Write a value with its interval; empty if it was not measured.

    Args:
        values: Value, lower and upper bound.

    Returns:
        The text.

    Example:
        >>> interval_text((0.5, 0.25, 0.75))
        '0.500 (0.250-0.750)'
    """
    return "" if math.isnan(values[0]) else "{:.3f} ({:.3f}-{:.3f})".format(*values)


def number(value: object) -> str:
    """Write a large number for people: 4.2 M, 8.0 B; empty if it is none.

    Args:
        value: What `run.json` holds.

    Returns:
        The number.

    Example:
        >>> number(4_240_000), number(2048)
        ('4.2 M', '2,048')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {letter}"
    return f"{value:,}"


def file_name(text: str) -> str:
    """Make a name for a file of the name of a task or a run.

    Args:
        text: The name, whatever it holds.

    Returns:
        Letters, digits and a few marks: no separator, nothing hidden.

    Example:
        >>> file_name("../rag/invented")
        'rag-invented'
    """
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")[:80]


def visible(text: str) -> str:
    r"""Show control and direction characters as their numbers.

    Args:
        text: What a model or a file said.

    Returns:
        Text that shows as it is, with its line breaks.

    Example:
        >>> visible("Lome\x1b[31m")
        'Lome[U+001B][31m'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one == "\n" or unicodedata.category(one) not in _HIDDEN else f"[U+{ord(one):04X}]" for one in text
    )


def escape_markdown(text: str) -> str:
    r"""Make a text of a run safe in a cell or a line of Markdown.

    Args:
        text: The text.

    Returns:
        One line, without markup of its own.

    Example:
        >>> escape_markdown("a|b <i>")
        'a\\|b \\<i\\>'
    """
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", visible(" ".join(text.split())))
