"""Questions about conversations over many sessions, one document for each session.

Is        the tasks of the suite `chat`, and the reader of LoCoMo's format.
Flow      rows, fitting, chat_own -> [chat] -> tasks.
Paper     LoCoMo, arXiv 2402.17753.
Change    how a session is written down, which sessions are shown if not all fit.
Not here  conversations of our own making -> chat_own.py.
Holds     sessions stand in their order; those that hold the evidence are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.scores import qa_scores
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.chat_own import chat_samples
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.rows import Row, rows

__all__ = ["TASKS"]

_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
_ADVERSARIAL = 5
_SESSION, _TURN = re.compile(r"session_(\d+)"), re.compile(r"D:?(\d+)(?::(\d+))?")


def _score(sample: Sample, prediction: str) -> Scores:
    return qa_scores(prediction, sample.answers)


class _Session(NamedTuple):
    """One session: its heading, and its turns."""

    heading: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join([self.heading, *self.turns])

    def span(self, numbers: Sequence[int]) -> tuple[int, int]:
        """First and last character of some turns, counted in the text without its heading."""
        known = [number - 1 for number in numbers if 0 < number <= len(self.turns)] or [0]
        start = sum(len(turn) + 1 for turn in self.turns[: min(known)])
        return start, sum(len(turn) + 1 for turn in self.turns[: max(known) + 1]) - 1


def _locomo(source: Source) -> Iterator[Sample]:
    """Questions about LoCoMo's conversations.

    Adversarial questions (category 5), which have no answer, are left out. If a conversation does not fit, the
    sessions that hold the evidence stay, and those nearest to them in time; if these do not fit either, they are cut
    around the turns that are named. Of answers in category 3 what stands behind `;`, a reason, is dropped.
    """
    room = Room(source)
    for row in rows(source):
        sessions = _sessions(row.part("conversation"))
        if not sessions:
            raise row.wrong("conversation", "an object with session_1, session_2 and so on")
        for number, asked in enumerate(row.parts("qa")):
            category = asked.values.get("category")
            if category == _ADVERSARIAL:
                continue
            if category not in _CATEGORIES:
                raise asked.wrong("category", "a number from 1 to 5")
            answers = asked.answers("answer")
            if _CATEGORIES[category] == "open-domain":
                answers = tuple(answer.split(";")[0].strip() for answer in answers)
            evidence = _evidence(asked, sessions)
            shown = _show(room, sessions, evidence)
            yield Sample(
                id=f"locomo-{row.number - 1}-{number:03d}",
                documents=tuple(shown.values()),
                tail=f"\n\nQuestion: {asked.text('question')}\nAnswer:",
                answers=answers,
                gold=tuple(place for place, name in enumerate(shown) if name in evidence),
                group=_CATEGORIES[category],
            )


def _sessions(talk: Row) -> dict[int, _Session]:
    """Sessions that have turns, by number, in order."""
    numbers = sorted(int(match[1]) for match in map(_SESSION.fullmatch, talk.values) if match)
    sessions = {}
    for number in numbers:
        turns = tuple(f"{turn.text('speaker')}: {_said(turn)}" for turn in talk.parts(f"session_{number}"))
        if turns:
            sessions[number] = _Session(f"Session {number}, {talk.text(f'session_{number}_date_time')}", turns)
    return sessions


def _said(turn: Row) -> str:
    """What was said, with the caption of a picture that was shown."""
    said, caption = turn.values.get("text") or "", turn.values.get("blip_caption")
    return f"{said} (shows {caption})".strip() if caption else str(said)


def _evidence(asked: Row, sessions: Mapping[int, _Session]) -> dict[int, list[int]]:
    """Turns that hold the answer, by session; those that are named in other ways than `D3:14` are passed over."""
    found: dict[int, list[int]] = {}
    for name in asked.items("evidence") if asked.values.get("evidence") else []:
        for session, turn in _TURN.findall(str(name)):
            if int(session) in sessions:
                found.setdefault(int(session), []).append(int(turn or 0))
    return found


def _show(room: Room, sessions: Mapping[int, _Session], evidence: Mapping[int, list[int]]) -> dict[int, str]:
    """Texts of the sessions that are shown, by number, in order."""
    texts = {number: session.text for number, session in sessions.items()}
    if room.fits(*texts.values()):
        return texts
    gold = [number for number in texts if number in evidence]
    if not room.fits(*(texts[number] for number in gold)):
        share = room.tokens // len(gold)
        return {number: _cut(room, sessions[number], evidence[number], share) for number in gold}
    near = gold or [max(texts)]
    others = sorted((one for one in texts if one not in gold), key=lambda one: min(abs(one - other) for other in near))
    kept = room.fill([texts[one] for one in gold], [texts[one] for one in others], len(texts)) or []
    return {number: text for number, text in texts.items() if text in kept}


def _cut(room: Room, session: _Session, turns: Sequence[int], share: int) -> str:
    left = max(1, share - room.size(session.heading))
    return f"{session.heading}\n{room.cut(chr(10).join(session.turns), session.span(turns), left)}"


TASKS: tuple[Task, ...] = (
    Task(name="chat/own", load=chat_samples, score=_score, metric="f1"),
    Task(
        name="chat/locomo",
        load=_locomo,
        score=_score,
        metric="f1",
        n_new=48,
        files={"test": ("locomo10.json",)},
        source="LoCoMo, CC BY-NC 4.0",
        lm_needed=True,
    ),
)
