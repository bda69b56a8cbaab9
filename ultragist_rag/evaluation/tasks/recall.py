"""Synthetic recall: find one value, or several, among others that look like it.

Is        seeded generators of samples sized to the room, and a reader of the key-value pairs of lost-in-the-middle.
Flow      haystack, evaluation.recall, rows -> [recall] -> tasks.
Paper     arXiv 2412.17483, table 8: JSON-KV, multi-key words and UUIDs, multi-value; needles after RULER,
          arXiv 2404.06654; pairs after lost-in-the-middle, arXiv 2307.03172. The texts are ours.
Change    how many needles there are, what they say.
Not here  how needles are hidden -> haystack.py; verbatim tokens at equal slots -> evaluation/recall.py.
Holds     a value that is asked for stands once, in a gold document; equal seeds give equal samples.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator, Sequence

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.recall import RecallCase, recall_cases
from ultragist_rag.evaluation.scores import qa_scores
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.haystack import Haystack, Needle
from ultragist_rag.evaluation.tasks.places import Place, pool
from ultragist_rag.evaluation.tasks.rows import rows
from ultragist_rag.training.country_fields import SECTIONS
from ultragist_rag.training.profiles import invented_word

__all__ = ["ALIKE", "UNLIKE", "TASKS"]

ALIKE, UNLIKE = "keys alike", "keys unlike"
"""Conditions of `recall/mk_word`: all needles tell the same of their places, or each something else."""

_COUNT, _N_KEYS, _N_VALUES, _N_OTHERS = 100, 4, 4, 2
_TOKENS_PER_DOCUMENT, _MOST_PAIRS = 200, 2000
_WORDS = ("capital", "nationality", "main language", "national anthem", "official name", "legislature")
_NUMBER = "record number"
_SHORTEST_WORD = 5


def _tail(asked: str) -> str:
    return f"\n\nQuestion: {asked}\nAnswer:"


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _word(rng: random.Random) -> str:
    word = ""
    while len(word) < _SHORTEST_WORD:
        word = invented_word(rng)
    return word.capitalize()


def _figure(rng: random.Random) -> str:
    return f"{rng.randrange(10**5, 10**6):,}"


def _is_clean(values: Sequence[str], documents: Sequence[str]) -> bool:
    """Whether each value stands once in all documents."""
    everything = "\n".join(documents).lower()
    return all(everything.count(value.lower()) == 1 for value in values)


# --- pairs of keys and values -------------------------------------------------------------------------------------

Pair = tuple[str, str]


def _pair_documents(room: Room, pairs: Sequence[Pair], asked: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Lay pairs out as JSON objects of some pairs each; also tell the one that has a key."""
    n_each = max(1, _TOKENS_PER_DOCUMENT // room.size(_object(pairs[:1])))
    documents = tuple(_object(pairs[start : start + n_each]) for start in range(0, len(pairs), n_each))
    return documents, tuple(place for place, text in enumerate(documents) if f'"{asked}":' in text)


def _object(pairs: Sequence[Pair]) -> str:
    return json.dumps(dict(pairs), indent=0, ensure_ascii=False)


def _cut_pairs(room: Room, pairs: Sequence[Pair], at: int) -> list[Pair]:
    """Cut pairs down to the room; the one at a place keeps its share of them before and behind it."""
    n = min(len(pairs), 1 + room.tokens // room.size(_object(pairs[:1])))
    while True:
        new = round(at * (n - 1) / max(1, len(pairs) - 1))
        kept = list(pairs[at - new : at - new + n])
        size = room.size(SEPARATOR.join(_pair_documents(room, kept, pairs[at][0])[0]))
        if size <= room.tokens or n == 1:
            return kept
        n = max(1, min(n - 1, n * room.tokens // size))


def _pair_sample(room: Room, name: str, pairs: Sequence[Pair], at: int) -> Sample:
    key, value = pairs[at]
    documents, gold = _pair_documents(room, _cut_pairs(room, pairs, at), key)
    return Sample(
        id=name,
        documents=documents,
        tail=_tail(f"What is the value of the key {key}?"),
        answers=(value,),
        gold=gold,
    )


def _json_kv(source: Source) -> Iterator[Sample]:
    room = Room(source)
    for index in range(_COUNT):
        rng = random.Random(f"{source.seed}/{source.task}/{index}")
        n = min(_MOST_PAIRS, max(1, room.tokens // room.size(_object([(_uuid(rng), _uuid(rng))]))) + 1)
        pairs = [(_uuid(rng), _uuid(rng)) for _ in range(n)]
        yield _pair_sample(room, f"{index:03d}", pairs, rng.randrange(n))


def _litm_kv(source: Source) -> Iterator[Sample]:
    room = Room(source)
    for row in rows(source):
        pairs = row.items("ordered_kv_records")
        key, value = row.text("key"), row.text("value")
        if [key, value] not in pairs or not all(isinstance(one, list) and len(one) == 2 for one in pairs):
            raise row.wrong("ordered_kv_records", "a list of pairs, with that of `key` and `value` among them")
        at = pairs.index([key, value])
        yield _pair_sample(room, f"{row.number - 1:04d}", [(str(one), str(other)) for one, other in pairs], at)


# --- needles ------------------------------------------------------------------------------------------------------


def _multi_key(
    labels: Callable[[str, random.Random], Sequence[str]],
    value: Callable[[random.Random], str],
    groups: Sequence[str] = ("",),
) -> Callable[[Source], Iterator[Sample]]:
    """Make a loader: each of some places has a value, one is asked for."""

    def load(source: Source) -> Iterator[Sample]:
        haystack = Haystack(source)
        for index in range(_COUNT):
            group = groups[index % len(groups)]
            rng = random.Random(f"{source.seed}/{source.task}/{index}")
            values: list[str] = []
            documents: tuple[str, ...] = ()
            while not _is_clean(values[:1], documents) or not values:
                places = haystack.places(rng, _N_KEYS)
                told = labels(group, rng)
                values = [value(rng) for _ in places]
                three = zip(places, told, values, strict=True)
                needles = [_needle(*one, rng, asked=not at) for at, one in enumerate(three)]
                documents, gold = haystack.hide(rng, needles)
            yield Sample(
                id=f"{index:03d}",
                documents=documents,
                tail=_tail(f"What is the {told[0]} of {places[0].name}?"),
                answers=(values[0],),
                gold=gold,
                group=group,
                notes={"others": tuple(values[1:])},
            )

    return load


def _needle(place: Place, label: str, value: str, rng: random.Random, *, asked: bool) -> Needle:
    return Needle(place, rng.choice(SECTIONS), f"The {label} of {place.name} is {value}.", label, asked)


def _word_labels(group: str, rng: random.Random) -> list[str]:
    return [rng.choice(_WORDS)] * _N_KEYS if group == ALIKE else rng.sample(_WORDS, _N_KEYS)


def _number_labels(_group: str, _rng: random.Random) -> list[str]:
    return [_NUMBER] * _N_KEYS


def _multi_value(source: Source) -> Iterator[Sample]:
    """Some values of one place, on a page each, and one of some others; all of the first are asked for."""
    haystack = Haystack(source)
    for index in range(_COUNT):
        rng = random.Random(f"{source.seed}/{source.task}/{index}")
        values: list[str] = []
        documents: tuple[str, ...] = ()
        while not values or not _is_clean(values, documents):
            here, *others = haystack.places(rng, 1 + _N_OTHERS)
            sections = rng.sample(SECTIONS, _N_VALUES)
            values = [_figure(rng) for _ in sections]
            needles = [
                Needle(here, section, f"A {_NUMBER} of {here.name} is {value}.", _NUMBER, asked=True)
                for section, value in zip(sections, values, strict=True)
            ]
            for other in others:
                said = f"A {_NUMBER} of {other.name} is {_figure(rng)}."
                needles.append(Needle(other, rng.choice(SECTIONS), said, _NUMBER))
            documents, gold = haystack.hide(rng, needles)
        yield Sample(
            id=f"{index:03d}",
            documents=documents,
            tail=_tail(f"What are the {_N_VALUES} {_NUMBER}s of {here.name}?"),
            answers=tuple(values),
            gold=gold,
        )


# --- single values, as `ultragist-rag recall` asks for them -------------------------------------------------------


def _exact(kind: str) -> Callable[[Source], Iterator[Sample]]:
    """Make a loader: a case among the documents of others."""

    def load(source: Source) -> Iterator[Sample]:
        room = Room(source)
        cases = recall_cases(kind, pool(), 2 * _COUNT, source.seed)
        for index, case in enumerate(cases[:_COUNT]):
            rng = random.Random(f"{source.seed}/{source.task}/{index}")
            others = [one.document for one in cases if _is_apart(one, case)]
            gold = _shortened(room, case)
            shown = room.fill([gold], rng.sample(others, len(others)), len(cases)) or [gold]
            while len(shown) > 1 and not room.fits(SEPARATOR.join(shown)):  # together they may need some tokens more
                shown = shown[:-1]
            documents = rng.sample(shown, len(shown))
            yield Sample(
                id=f"{index:03d}",
                documents=tuple(documents),
                tail=_tail(case.question),
                answers=(case.answer,),
                gold=(documents.index(gold),),
            )

    return load


def _is_apart(one: RecallCase, asked: RecallCase) -> bool:
    """Whether a document says nothing about the place that is asked for, and does not hold the answer by chance."""
    name, other = (case.document.partition(" - ")[0] for case in (asked, one))
    return name not in one.document and other not in asked.question and asked.answer not in one.document


def _shortened(room: Room, case: RecallCase) -> str:
    """The document without its last sentences, if it does not fit; the one with the answer stays."""
    header, _, body = case.document.partition(SEPARATOR)
    lines = body.split("\n")
    while len(lines) > 1 and not room.fits(SEPARATOR.join((header, "\n".join(lines)))):
        del lines[-1 if case.answer not in lines[-1] else -2]
    return SEPARATOR.join((header, "\n".join(lines)))


def _found(sample: Sample, prediction: str) -> Scores:
    return qa_scores(prediction, sample.answers)


def _share_found(sample: Sample, prediction: str) -> Scores:
    """Score several values: the share that stands in the prediction, and whether all do."""
    share = sum(qa_scores(prediction, [answer])["subem"] for answer in sample.answers) / len(sample.answers)
    return {"subem": share, "all": float(share == 1.0)}


TASKS: tuple[Task, ...] = (
    Task(name="recall/number", load=_exact("number"), score=_found, metric="subem"),
    Task(name="recall/uuid", load=_exact("uuid"), score=_found, metric="subem", n_new=64, lm_needed=True),
    Task(
        name="recall/mk_word",
        load=_multi_key(_word_labels, _word, (ALIKE, UNLIKE)),
        score=_found,
        metric="subem",
    ),
    Task(
        name="recall/mk_uuid",
        load=_multi_key(_number_labels, _uuid),
        score=_found,
        metric="subem",
        n_new=64,
        lm_needed=True,
    ),
    Task(name="recall/mv", load=_multi_value, score=_share_found, metric="subem", n_new=64),
    Task(name="recall/json_kv", load=_json_kv, score=_found, metric="subem", n_new=64, lm_needed=True),
    Task(
        name="recall/litm_kv",
        load=_litm_kv,
        score=_found,
        metric="subem",
        n_new=64,
        files={"test": ("litm/kv-retrieval-75_keys.jsonl.gz", "kv-retrieval-75_keys.jsonl.gz")},
        source="lost-in-the-middle, Liu et al. 2023; MIT",
        lm_needed=True,
    ),
)
