"""Conversations of two people who do not exist, over several days, and questions about what was said.

Is        a seeded generator: sessions with dates, in which the two tell facts, changes, what they did, and of places.
Flow      places, fitting -> [chat_own] -> chat.
Change    what people tell, how many facts a session has, what is asked for.
Holds     the answer stands once in all that is shown; sessions stay in their order; equal seeds give equal samples.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.places import SHORTEST_VALUE, draw_place, page
from ultragist_rag.training.country_fields import SECTIONS
from ultragist_rag.training.profiles import invented_name, invented_word

__all__ = ["chat_samples"]

_COUNT, _MOST_SESSIONS, _N_FACTS, _N_SIGHTS, _N_IDLE = 200, 12, 2, 3, 2
_CHANGED_SHARE, _OWN_SHARE, _SIGHT_SHARE = 0.25, 0.5, 0.4
_FIRST_DAY = date(2022, 1, 10)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)

OWN, OTHER, CHANGED, DAY, SIGHT = "of oneself", "of the other", "changed since", "day of an event", "of a place"
"""Conditions: what is told; of places in the wordings that the bundled model was trained on, the others in new ones."""

_FACTS: dict[str, tuple[str, ...]] = {
    "favourite dish": (
        "lentil soup",
        "plum cake",
        "fried trout",
        "barley stew",
        "pea pie",
        "egg noodles",
        "roast leek",
    ),
    "favourite colour": ("dark green", "pale blue", "brick red", "warm grey", "light brown", "deep purple"),
    "favourite animal": ("the otter", "the heron", "the badger", "the grass snake", "the wild goose", "the hare"),
    "job": ("baker", "bus driver", "piano tuner", "land surveyor", "night nurse", "gardener", "bookbinder"),
    "hobby": ("rowing", "chess", "wood carving", "bird watching", "choir singing", "map drawing", "knitting"),
    "instrument": ("the viola", "the clarinet", "the harp", "the bass drum", "the mandolin", "the oboe"),
    "home town": ("place",),
    "holiday place": ("place",),
    "employer": ("place",),
    "sister": ("name",),
    "brother": ("name",),
    "neighbour": ("name",),
    "doctor": ("name",),
    "landlord": ("name",),
    "favourite singer": ("name",),
    "lucky number": ("number",),
    "locker number": ("number",),
    "bus line": ("number",),
}
"""What there is to tell; `place`, `name` and `number` stand for values that are made up each time."""

_EVENTS = (
    ("bought a bicycle", "buy a bicycle"),
    ("planted a pear tree", "plant a pear tree"),
    ("lost a blue glove", "lose a blue glove"),
    ("painted the kitchen", "paint the kitchen"),
    ("sold the old car", "sell the old car"),
    ("swam in the lake", "swim in the lake"),
    ("repaired the radio", "repair the radio"),
    ("won a chess game", "win a chess game"),
    ("moved to a new flat", "move to a new flat"),
    ("adopted a grey cat", "adopt a grey cat"),
    ("visited the museum", "visit the museum"),
    ("baked a large loaf", "bake a large loaf"),
)
_IDLE = (
    "It rained all morning here.",
    "I slept well last night.",
    "That sounds good to me.",
    "We should meet again soon.",
    "I have not thought about that yet.",
    "The shop was closed again.",
    "I am a little tired today.",
    "You told me a good story last time.",
    "There was much noise in the street.",
    "I will think about it.",
    "The tea is still too hot.",
    "I like to hear that.",
)


class _Told(NamedTuple):
    """Something that was told: by session, what it is about, its value, how it is asked for, its condition."""

    session: int
    about: tuple[str, str]
    value: str
    question: str
    group: str


def chat_samples(source: Source) -> Iterator[Sample]:
    """Draw the samples of `chat/own`.

    Args:
        source: Its seed and its room count: there are as many sessions as fit, twelve at most.

    Yields:
        The samples, one document for each session.
    """
    room = Room(source)
    for index in range(_COUNT):
        name = f"own-{index:03d}"
        rng = random.Random(f"{source.seed}/{name}")
        texts, asked = _draw(room, rng)
        yield Sample(
            id=name,
            documents=tuple(texts),
            tail=f"\n\nQuestion: {asked.question}\nAnswer:",
            answers=(asked.value,),
            gold=(asked.session,),
            group=asked.group,
        )


def _draw(room: Room, rng: random.Random) -> tuple[list[str], _Told]:
    """The sessions that fit, one at least, and what is asked for: often something of a place."""
    while True:
        texts, told = _Talk(rng).sessions(room)
        shown = "\n".join(texts).lower()
        latest = {one.about: one for one in told if one.session < len(texts)}
        fit = [one for one in latest.values() if _askable(one.value.lower(), shown)]
        groups = sorted({one.group for one in fit})
        if groups:
            group = SIGHT if SIGHT in groups and rng.random() < _SIGHT_SHARE else rng.choice(groups)
            return texts, rng.choice([one for one in fit if one.group == group])


def _askable(value: str, shown: str) -> bool:
    return len(value) >= SHORTEST_VALUE and shown.count(value) == 1


class _Talk:
    """Two people, and what they have told each other so far."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._people = _two_names(rng)
        self._open = [(person, label) for person in self._people for label in _FACTS]
        self._events = list(_EVENTS)
        rng.shuffle(self._open)
        rng.shuffle(self._events)
        self._told: list[_Told] = []

    def sessions(self, room: Room) -> tuple[list[str], list[_Told]]:
        """Texts of the sessions that fit, and what was told in them, and maybe in one more."""
        day = _FIRST_DAY + timedelta(days=self._rng.randrange(900))
        texts: list[str] = []
        for number in range(_MOST_SESSIONS):
            day += timedelta(days=self._rng.randint(2, 40))
            text = self._session(number, f"{day.day} {_MONTHS[day.month - 1]} {day.year}")
            if texts and not room.fits(*texts, text):
                break
            texts.append(text)
        return texts, self._told

    def _session(self, number: int, day: str) -> str:
        first, second = self._rng.sample(self._people, 2)
        lines = [self._event(number, day), *(self._fact(number) for _ in range(_N_FACTS)), *self._sights(number)]
        lines += [f"{self._rng.choice(self._people)}: {line}" for line in self._rng.sample(_IDLE, _N_IDLE)]
        self._rng.shuffle(lines)
        lines = [f"{first}: Hello {second}, it is good to talk to you.", f"{second}: Hello {first}.", *lines]
        return "\n".join([f"Session {number + 1}, {day}", *lines])

    def _event(self, number: int, day: str) -> str:
        person = self._rng.choice(self._people)
        did, do = self._events.pop()
        self._told.append(_Told(number, (person, did), day, f"On which day did {person} {do}?", DAY))
        return f"{person}: Today I {did}."

    def _sights(self, number: int) -> list[str]:
        """What one of them tells of a place, one that they have not talked about."""
        place = draw_place(self._rng, [one.about[0] for one in self._told])
        speaker = self._rng.choice(self._people)
        told = page(place, self._rng.choice(SECTIONS), self._rng, (_N_SIGHTS, _N_SIGHTS)).lines
        for line in told:
            asked = line.question(place.name, self._rng)
            self._told.append(_Told(number, (place.name, line.field.label), line.value, asked, SIGHT))
        return [f"{speaker}: {line.text}" for line in told]

    def _fact(self, number: int) -> str:
        before = [one for one in self._told if one.session < number and one.group in (OWN, OTHER, CHANGED)]
        change = bool(before) and self._rng.random() < _CHANGED_SHARE
        person, label = self._rng.choice(before).about if change else self._open.pop()
        value = _value(_FACTS[label], self._rng)
        speaker = person if self._rng.random() < _OWN_SHARE else self._people[self._people[0] == person]
        whose = f"My {label}" if speaker == person else f"The {label} of {person}"
        now = " now" if change else ""
        group = CHANGED if change else OWN if speaker == person else OTHER
        question = f"What is the {label} of {person}{now}?"
        self._told.append(_Told(number, (person, label), value, question, group))
        return f"{speaker}: {whose} is{now} {value}."


def _two_names(rng: random.Random) -> tuple[str, str]:
    while True:
        one, other = (invented_word(rng).capitalize() for _ in range(2))
        if one not in other and other not in one:
            return one, other


def _value(values: Sequence[str], rng: random.Random) -> str:
    value = rng.choice(values)
    if value == "name":
        return invented_word(rng).capitalize()
    if value == "place":
        return invented_name(rng)
    return str(rng.randrange(100, 10_000)) if value == "number" else value
