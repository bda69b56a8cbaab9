"""Conversations keep their order, and hold the answer in the session that they say."""

from __future__ import annotations

import json
import lzma
import re
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.task import Sample
from ultragist_rag.evaluation.tasks.chat import TASKS
from ultragist_rag.evaluation.tasks.chat_own import CHANGED, DAY, OTHER, OWN, SIGHT

OURS, LOCOMO = TASKS


def words(text: str) -> int:
    return len(text.split())


def own(room: int = 400, seed: int = 0, most: int = 24) -> list[Sample]:
    return list(islice(OURS.load(Source(task=OURS.name, room=room, count=words, seed=seed)), most))


def locomo(place: Path, room: int = 2000) -> list[Sample]:
    return list(LOCOMO.load(Source(task=LOCOMO.name, files=LOCOMO.files, place=place, room=room, count=words)))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return own()


def test_the_answer_stands_once_and_in_the_gold_session(samples: list[Sample]) -> None:
    for one in samples:
        (answer,), (gold,) = one.answers, one.gold
        assert [text.count(answer) for text in one.documents] == [
            int(place == gold) for place in range(len(one.documents))
        ]


def test_sessions_are_numbered_and_two_people_talk(samples: list[Sample]) -> None:
    for one in samples:
        heads = [text.split("\n")[0] for text in one.documents]
        assert [head.split(",")[0] for head in heads] == [f"Session {n + 1}" for n in range(len(heads))]
        days = [datetime.strptime(head.split(", ")[1], "%d %B %Y") for head in heads]
        assert days == sorted(set(days))
        assert len({line.split(":")[0] for text in one.documents for line in text.split("\n")[1:]}) == 2
        assert sum(map(words, one.documents)) <= 400


def test_questions_are_about_what_their_condition_says(samples: list[Sample]) -> None:
    groups = {one.group for one in samples}
    assert groups == {CHANGED, DAY, OTHER, OWN, SIGHT}
    for one in samples:
        gold = one.documents[one.gold[0]]
        (line,) = (line for line in gold.split("\n") if one.answers[0] in line)
        asked = one.tail.removeprefix("\n\nQuestion: ").removesuffix("\nAnswer:")
        if one.group == DAY:
            person, did = re.fullmatch(r"On which day did (\w+) \w+ (.*)\?", asked).groups()
            assert re.search(f"^{person}: Today I \\w+ {did}\\.$", gold, re.MULTILINE)
            assert line == gold.split("\n")[0]
        elif one.group != SIGHT:
            label, person = re.fullmatch(r"What is the (.*) of (\w+?)(?: now)?\?", asked).groups()
            assert (" now?" in asked) == (one.group == CHANGED) == (" is now " in line)
            mine = line.startswith(f"{person}: My {label} is")
            assert mine or f": The {label} of {person} is" in line
            assert one.group == CHANGED or mine == (one.group == OWN)
            told = "\n".join(one.documents[one.gold[0] + 1 :])
            assert f"{person}: My {label} is" not in told
            assert f"The {label} of {person} is" not in told
            before = "\n".join(one.documents[: one.gold[0]])
            assert (f"{label} is" in before or f"{label} of {person} is" in before) or one.group != CHANGED


def test_equal_seeds_give_equal_samples_and_rooms_count(samples: list[Sample]) -> None:
    assert own(most=5) == samples[:5]
    assert not {one.documents for one in samples} & {one.documents for one in own(seed=1, most=5)}
    assert len({one.id for one in samples}) == len(samples)
    small, large = own(150, most=5), own(900, most=5)
    assert max(sum(map(words, one.documents)) for one in small) <= 150
    assert min(len(one.documents) for one in large) > max(len(one.documents) for one in small)


def test_right_answers_score_one_and_wrong_ones_nothing(samples: list[Sample]) -> None:
    for one in samples:
        assert OURS.score(one, one.answers[0]) == {"f1": 1.0, "em": 1.0, "subem": 1.0}
        assert OURS.score(one, "xyzzy") == {"f1": 0.0, "em": 0.0, "subem": 0.0}


def conversation(n_sessions: int, n_turns: int) -> dict[str, Any]:
    talk: dict[str, Any] = {"speaker_a": "Ada", "speaker_b": "Ben", f"session_{n_sessions + 1}_date_time": "later"}
    for session in range(1, n_sessions + 1):
        talk[f"session_{session}_date_time"] = f"{session} May 2023"
        talk[f"session_{session}"] = [
            {
                "speaker": "Ada" if turn % 2 else "Ben",
                "dia_id": f"D{session}:{turn}",
                "text": f"I say {session}-{turn} .",
            }
            for turn in range(1, n_turns + 1)
        ]
    return talk


def write(folder: Path, qa: list[dict[str, Any]], talk: dict[str, Any], packed: bool = False) -> Path:
    text = json.dumps([{"sample_id": "conv-1", "conversation": talk, "qa": qa}]).encode()
    path = folder / ("locomo10.json.xz" if packed else "locomo10.json")
    path.write_bytes(lzma.compress(text) if packed else text)
    return path


QA = [
    {"question": "Who?", "answer": "Ada", "evidence": ["D3:2"], "category": 4},
    {"question": "When?", "answer": 2023, "evidence": ["D1:1; D5:4", "D:4:2"], "category": 2},
    {"question": "Never?", "adversarial_answer": "Ben", "evidence": ["D1:1"], "category": 5},
    {"question": "Maybe?", "answer": "Yes; she said so", "evidence": [], "category": 3},
]


@pytest.mark.parametrize("packed", [False, True])
def test_sessions_and_evidence_are_read(tmp_path: Path, packed: bool) -> None:
    talk = conversation(12, 4)
    talk["session_2"][0] |= {"blip_caption": "a photo of a pond"}
    del talk["session_2"][1]["text"]
    write(tmp_path, QA, talk, packed)
    who, when, maybe = locomo(tmp_path)
    assert who.documents == when.documents == maybe.documents
    assert [text.split("\n")[0] for text in who.documents] == [f"Session {n}, {n} May 2023" for n in range(1, 13)]
    assert who.documents[1] == (
        "Session 2, 2 May 2023\nAda: I say 2-1 . (shows a photo of a pond)\nBen: \nAda: I say 2-3 .\nBen: I say 2-4 ."
    )
    assert (who.gold, when.gold, maybe.gold) == ((2,), (0, 3, 4), ())
    assert (who.answers, when.answers, maybe.answers) == (("Ada",), ("2023",), ("Yes",))
    assert (who.group, when.group, maybe.group) == ("single-hop", "temporal", "open-domain")
    assert len({who.id, when.id, maybe.id}) == 3


def test_what_does_not_fit_is_left_out_but_not_the_evidence(tmp_path: Path) -> None:
    write(tmp_path, QA, conversation(12, 4))
    size = words("Session 1, 1 May 2023\n" + "Ada: I say 1-1 .\n" * 4)
    who, when, maybe = (
        [int(text.split(",")[0].split()[1]) for text in one.documents] for one in locomo(tmp_path, 4 * size)
    )
    assert who == [1, 2, 3, 4]
    assert set(when) > {1, 4, 5}
    assert maybe == [9, 10, 11, 12]


def test_a_session_that_does_not_fit_is_cut_around_the_turns_that_are_named(tmp_path: Path) -> None:
    qa = [{"question": "Who?", "answer": "Ada", "evidence": ["D3:150", "D3:151"], "category": 4}]
    write(tmp_path, [*qa, {**qa[0], "evidence": ["D1:1", "D2:200"], "category": 1}], conversation(3, 200))
    one, both = locomo(tmp_path, 100)
    assert one.documents[0].startswith("Session 3, 3 May 2023\n")
    assert "I say 3-150 ." in one.documents[0]
    assert "I say 3-151 ." in one.documents[0]
    assert (one.gold, both.gold) == ((0,), (0, 1))
    assert "I say 1-1 ." in both.documents[0]
    assert "I say 2-200 ." in both.documents[1]
    assert all(50 < sum(map(words, sample.documents)) <= 100 for sample in (one, both))


@pytest.mark.parametrize(
    ("qa", "talk", "match"),
    [
        ([{"question": "Q?", "answer": "A", "category": 9}], conversation(1, 1), "'category' is 9"),
        ([{"question": "Q?", "category": 1}], conversation(1, 1), "'answer' is missing"),
        ([{"answer": "A", "category": 1}], conversation(1, 1), "'question' is missing"),
        ([], {"session_1": [{"text": "Hm."}]}, "'speaker' is missing"),
        ([], {"session_1": [{"speaker": "Ada"}]}, "'session_1_date_time' is missing"),
        ([], {"speaker_a": "Ada"}, "session_1, session_2"),
    ],
)
def test_a_wrong_record_is_told_with_file_and_field(
    tmp_path: Path, qa: list[dict[str, Any]], talk: dict[str, Any], match: str
) -> None:
    with pytest.raises(MissingDataError, match=r"locomo10\.json"):
        locomo(tmp_path)
    path = write(tmp_path, qa, talk)
    with pytest.raises(InputError, match=match) as caught:
        locomo(tmp_path)
    assert f"record 1 of {path}" in str(caught.value)
