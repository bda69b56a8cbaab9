"""Write country profiles and questions about them from a table of facts and figures.

Is        string work with a seeded random generator: figures -> facts -> profile text, and facts -> questions.
Flow      country_fields -> [profiles] -> training samples, the example corpus.
Change    how a figure is cleaned, how a profile is laid out, how facts of invented places are drawn.
Not here  the fields and their wordings -> country_fields.py.
Holds     the answer to every question stands, letter by letter, in the profile.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from ultragist_rag.training.country_fields import FIELDS, SECTIONS, Field
from ultragist_rag.training.words import Words

Facts = Mapping[str, str]
Pairs = list[tuple[str, str]]
"""Questions and their answers."""

_LABELLED = re.compile(r"^([^:]{2,70}): (.+)$")
_BRACKETS = re.compile(r"\s*[\(\[][^()\[\]]*[\)\]]")
_LONGEST = 72
_LAST_VALUE = re.compile(r"(?<=: )[^;:()\n]+$", re.MULTILINE)
_LONG_LIST = 3  # items at least of what is put into another order
_GROUP_LONGEST = 70


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of a profile, its field and the value in it; without a field it says what is missing."""

    text: str
    field: Field | None
    value: str


def held_out(titles: Sequence[str]) -> set[str]:
    """Titles never trained on: of all sorted by name, those with index % 10 == 7."""
    return {title for index, title in enumerate(sorted(titles)) if index % 10 == 7}


def read_figures(text: str) -> dict[str, str]:
    """Labelled lines of one factbook profile as `section|group/label` -> value."""
    figures: dict[str, str] = {}
    section, group = "", ""
    for line in text.splitlines():
        match = _LABELLED.match(line)
        if line.startswith("## "):
            section, group = line[3:].strip(), ""
        elif not line.strip():
            group = ""
        elif match:
            label = f"{group}/{match.group(1)}" if group else match.group(1)
            figures.setdefault(f"{section}|{label}", match.group(2))
        elif len(line) < _GROUP_LONGEST:
            group = line.strip()
    return figures


def facts_of(figures: Mapping[str, str]) -> dict[str, str]:
    """Cleaned values of the fields that the figures name, by field key."""
    facts = {}
    for field in FIELDS:
        value = _clean(figures.get(field.source, ""), field.keep)
        if value:
            facts[field.key] = value
    return facts


def _clean(raw: str, keep: str) -> str:
    if keep == "quoted" and '"' in raw:
        value = raw.split('"')[1]
    elif keep == "currency":
        value = raw.split(" per ")[0]
    elif keep == "carbon":
        value = raw.split(" of CO2")[0]
    else:
        value = raw
    for _ in range(3):
        value = _BRACKETS.sub("", value)
    value = value.split(";")[0].split(" - ")[0]
    if keep in {"three", "first"}:
        items = [re.sub(r"\s*[\d.<>,]+%.*$", "", item).strip() for item in value.split(",")]
        value = ", ".join(item for item in items[: 3 if keep == "three" else 1] if item)
    if keep == "figure":
        share = re.match(r"-?[\d.,]+%", value)
        value = share.group(0) if share else value.split(" of ")[0]
    if len(value) > _LONGEST:
        value = value[:_LONGEST].rsplit(",", 1)[0] if "," in value[:_LONGEST] else ""
    value = value.strip().strip('"').rstrip(".,:").strip()
    return "" if value.lower() in {"na", "none", "n/a"} or any(mark in value for mark in "()[]") else value


def profile_lines(name: str, facts: Facts, rng: random.Random) -> dict[str, list[Line]]:
    """Sentences of a profile by section; each field uses one of its three statements."""
    sections: dict[str, list[Line]] = {section: [] for section in SECTIONS}
    for field in FIELDS:
        value = facts.get(field.key, "")
        statement = rng.choice(field.statements)
        if value:
            line = Line(statement.replace("{c}", name).replace("{v}", value), field, value)
        else:
            line = Line(f"The table of figures has no entry for the {field.label} of {name}.", None, "")
        sections[field.section].append(line)
    return sections


def profile_text(name: str, sections: Mapping[str, Sequence[Line]]) -> str:
    """The profile as Markdown: a title, a heading for each section, a line for each sentence."""
    parts = [f"# {name}"]
    for section, lines in sections.items():
        parts.append(f"## {section}\n\n" + "\n".join(line.text for line in lines))
    return "\n\n".join(parts) + "\n"


_ONSETS = (
    *("b", "br", "c", "ch", "d", "dr", "f", "g", "gl", "h", "j", "k", "kr", "l", "m", "n"),
    *("p", "pr", "qu", "r", "s", "sh", "st", "t", "th", "tr", "v", "w", "y", "z", "", "", ""),
)
_VOWELS = ["a", "e", "i", "o", "u", "ai", "au", "ea", "ia", "ou", "é", "á", "ö"]
_CODAS = ["", "", "", "n", "r", "s", "l", "m", "nd", "k", "t", "sk", "ng", "x"]
_TAILS = ("Islands", "Island", "Republic", "Coast", "and {}", "Territory", "City", "of {}", "{}")


def invented_word(rng: random.Random) -> str:
    """A word of one to three random syllables, in lower case."""
    count = rng.choice((1, 2, 2, 2, 2, 3, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))


def invented_name(rng: random.Random) -> str:
    """A name for a place that does not exist."""
    name = invented_word(rng).capitalize()
    if rng.random() < 0.3:
        name += " " + rng.choice(_TAILS).format(invented_word(rng).capitalize())
    if rng.random() < 0.1:
        name = rng.choice(("New ", "Saint ", "North ", "South ", "West ", "Upper ")) + name
    return name


_SWAPPED = re.compile(r"\d+|\b[A-Z][^\W\d_]{2,}")
_SWAPPED_TOO = re.compile(r"\d+|\b[^\W\d_]{4,}|\b[A-Z][^\W\d_]{2}|(?<=\.)[a-z]{2}\b")
_CODE = 2  # letters of codes such as .xy
_LOWER = 0.4  # share of words in lower case that are swapped, of that of names
_REAL = 0.6  # share of new words that are real ones, where there are some
_PHRASES = 0.3  # share of values that are phrases of texts, likewise


def scramble(
    text: str, rng: random.Random, words: float = 0.6, seen: dict[str, str] | None = None, real: Words | None = None
) -> str:
    """The text with other digits and, for a share of them, other names; equal words stay equal through `seen`.

    Args:
        text: The text.
        rng: The generator.
        words: Share of the capitalised words that become others.
        seen: What words became so far; gains those of this text.
        real: Where new words come from, for words in lower case, too; None for invented names alone.

    Returns:
        The text, with all else as it was.
    """
    seen = {} if seen is None else seen
    pattern = _SWAPPED_TOO if real else _SWAPPED
    return pattern.sub(lambda match: _swapped(match.group(0), rng, words, seen, real), text)


def reordered(text: str, pairs: Pairs, rng: random.Random) -> tuple[str, Pairs]:
    """Lists of values in another order, in answers, too, so that it can only be read."""
    orders: dict[str, str] = {}

    def order(match: re.Match[str]) -> str:
        values = match.group()
        items = values.split(", ")
        if len(items) < _LONG_LIST or values.endswith(".") or ". " in values:
            return values
        return orders.setdefault(values, ", ".join(rng.sample(items, len(items))))

    text = _LAST_VALUE.sub(order, text)
    for values, new in orders.items():
        pairs = [(question, answer.replace(values, new)) for question, answer in pairs]
    return text, pairs


def _swapped(token: str, rng: random.Random, words: float, seen: dict[str, str], real: Words | None) -> str:
    if token not in seen:
        if token[0].isdigit():
            seen[token] = rng.choice("123456789") + "".join(rng.choice("0123456789") for _ in token[1:])
        elif rng.random() < (words if token[0].isupper() or len(token) == _CODE else words * _LOWER):
            seen[token] = _new_word(token, rng, real)
        else:
            seen[token] = token
    return seen[token]


def _new_word(token: str, rng: random.Random, real: Words | None) -> str:
    if len(token) == _CODE:
        return "".join(rng.choice(ascii_lowercase) for _ in token)
    if real and rng.random() < _REAL:
        return real.like(token, rng)
    new = invented_word(rng)
    return new.capitalize() if token[0].isupper() else new


def invented_facts(pool: Mapping[str, Sequence[str]], rng: random.Random, real: Words | None = None) -> dict[str, str]:
    """Facts of a place that does not exist: values of other places, with other digits, names and list items.

    Args:
        pool: Values by field key.
        rng: The generator.
        real: Where words and phrases of other texts come from; None for none.

    Returns:
        Values by field key; some fields are left out.
    """
    facts = {}
    for field in FIELDS:
        if not pool[field.key] or rng.random() < 0.06:
            continue
        value = rng.choice(pool[field.key])
        is_free = field.keep in {"clause", "first", "quoted", "currency"}
        if field.keep == "three":
            items = [rng.choice(pool[field.key]).split(", ")[0] for _ in range(rng.choice((2, 3, 3)))]
            items = [_item(item, rng, real) for item in items]
            value = ", ".join(dict.fromkeys(items))
        elif real and is_free and rng.random() < _PHRASES:
            value = real.phrase(rng)
        elif rng.random() < 0.25 and is_free:
            value = invented_name(rng)
        elif rng.random() < 0.9:
            value = scramble(value, rng, real=real)
        facts[field.key] = value
    return facts


def _item(item: str, rng: random.Random, real: Words | None) -> str:
    if real and rng.random() < _PHRASES:
        return real.phrase(rng, 2)
    return invented_word(rng) if rng.random() < 0.15 else item


def question(field: Field, name: str, rng: random.Random, *, heldout: bool = False) -> str:
    """One question about a field, in a wording for training or in one kept for measuring."""
    wordings = field.heldout_wordings() if heldout else field.train_wordings()
    return rng.choice(wordings).replace("{c}", name)
