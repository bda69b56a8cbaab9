"""The facts a country profile tells, and the wordings it tells and asks them in.

Is        the table of country_fields.yaml: for every field its section, its figure, three statements, questions.
Flow      country_fields.yaml -> [country_fields] -> profiles, samples.
Change    add a field, a statement, a wording to the table; a frame for all fields here.
Not here  reading figures from the source, writing profiles -> profiles.py.
Holds     every field has at least five wordings for training and two held out, and they share no string.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

TRAIN_FRAMES = (
    "What is the {n} of {c}?",
    "What is {c}'s {n}?",
    "Give the {n} of {c}.",
    "For {c}, what is the {n}?",
    "State {c}'s {n}.",
)
HELDOUT_FRAMES = ("Could you tell me the {n} of {c}?", "I would like to know {c}'s {n}.")


@dataclass(frozen=True)
class Field:
    """One fact: `label` names it, `source` is its label in the figures, `keep` the part of the figure that is used."""

    section: str
    label: str
    source: str
    keep: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    heldout: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the field in a table of facts."""
        return self.label.replace(" ", "_")

    def train_wordings(self) -> tuple[str, ...]:
        """Question wordings that training may use, with `{c}` for the country."""
        return self.questions + tuple(frame.replace("{n}", self.label) for frame in TRAIN_FRAMES)

    def heldout_wordings(self) -> tuple[str, ...]:
        """Question wordings kept for measuring."""
        return self.heldout + tuple(frame.replace("{n}", self.label) for frame in HELDOUT_FRAMES)


def _read_fields() -> tuple[Field, ...]:
    text = files(__package__).joinpath("country_fields.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = yaml.safe_load(text)
    lists = ("statements", "questions", "heldout")
    return tuple(Field(**{**entry, **{name: tuple(entry[name]) for name in lists}}) for entry in entries)


FIELDS: tuple[Field, ...] = _read_fields()
SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(field.section for field in FIELDS))
