"""Many-shot in-context learning: label a text after as many labelled ones as there is room for.

Is        readers of five data sets of short texts, and the demonstrations that all questions of one share.
Flow      rows, fitting, intents.yaml -> [icl] -> tasks.
Paper     arXiv 2412.17483, table 8: TREC coarse and fine, NLU, BANKING77, CLINC150; accuracy.
Change    which files there are, how demonstrations are drawn and laid out.
Holds     every label that can be right has a demonstration, and no label has two more than another unless its texts
          have run out; equal seeds give equal demonstrations.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.scores import accuracy
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.rows import Row, rows
from ultragist_rag.evaluation.tasks.shipped import shipped

__all__ = ["TASKS"]

_TOKENS_PER_DOCUMENT, _ASKED_OF_EACH = 256, 4
_OUT_OF_SCOPE = "oos"
_LABELS = ("label_text", "category", "intent", "label")

Labelled = tuple[str, str]
"""A text and its label."""

Splits = tuple[Iterable[Labelled], Iterable[Labelled]]
"""Texts to learn from, and texts to ask about."""


# --- where texts and labels come from -----------------------------------------------------------------------------


def _own(_source: Source) -> Splits:
    by_label: Mapping[str, Sequence[str]] = shipped("intents.yaml")
    known = [(text, label) for label, texts in by_label.items() for text in texts[:-_ASKED_OF_EACH]]
    asked = [(text, label) for label, texts in by_label.items() for text in texts[-_ASKED_OF_EACH:]]
    return known, asked


def _trec(fine: bool) -> Callable[[Source], Splits]:
    def splits(source: Source) -> Splits:
        _check_two_files(source)
        return _trec_lines(source, "train", fine), _trec_lines(source, "test", fine)

    return splits


def _trec_lines(source: Source, role: str, fine: bool) -> Iterator[Labelled]:
    """Read lines such as `DESC:manner How did ...`."""
    for number, line in enumerate(source.lines(role, encoding="latin-1"), start=1):
        label, _, text = line.strip().partition(" ")
        if label and not (":" in label and text):
            values = {"line": line}
            raise Row(str(source.path(role)), number, values).wrong("line", "a label such as DESC:manner and a text")
        if label:
            yield text.strip(), label if fine else label.partition(":")[0]


def _two_files(source: Source) -> Splits:
    _check_two_files(source)
    return _labelled(rows(source, "train")), _labelled(rows(source, "test"))


def _labelled(found: Iterable[Row]) -> list[Labelled]:
    return [(row.text("text"), _name(row.text(*_LABELS))) for row in found]


def _check_two_files(source: Source) -> None:
    """Refuse one file for both roles: questions would stand among the demonstrations."""
    if str(source.place).startswith("hub:"):
        return
    if source.path("train") == source.path("test"):
        names = " and ".join(source.files[role][0] for role in ("train", "test"))
        raise MissingDataError(f"{source.task} is left out: it needs two files. Name the folder that holds {names}.")


def _nlu(source: Source) -> Splits:
    found: dict[str, list[Labelled]] = {"train": [], "test": []}
    for row in rows(source):
        split = row.text("split")
        if split not in found:
            raise row.wrong("split", "train or test")
        label = f"{row.text('scenario')} {row.text('intent')}"
        found[split].append((row.text("text"), _name(label)))
    return found["train"], found["test"]


def _clinc(source: Source) -> Splits:
    """Read one record for each text, or one object with a list for each split; texts out of scope are left out."""
    found: dict[str, list[Labelled]] = defaultdict(list)
    for row in rows(source):
        if "split" in row.values:
            found[row.text("split")].append((row.text("text"), row.text("label")))
            continue
        for split in ("train", "test"):
            pairs = row.items(split)
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                raise row.wrong(split, "a list of pairs of text and label")
            found[split] += [(str(text), str(label)) for text, label in pairs]
    known, asked = (
        [(text, _name(label)) for text, label in found[split] if label != _OUT_OF_SCOPE] for split in ("train", "test")
    )
    return known, asked


def _name(label: str) -> str:
    """A label as words."""
    return label.replace("_", " ").strip()


# --- demonstrations and questions ---------------------------------------------------------------------------------


def _loader(splits: Callable[[Source], Splits]) -> Callable[[Source], Iterator[Sample]]:
    """Make a loader of a reader."""

    def load(source: Source) -> Iterator[Sample]:
        known, asked = splits(source)
        shown = _demonstrations(source, known)
        if not shown:
            raise MissingDataError(f"{source.task} is left out: {source.room} tokens hold no text. Raise --context.")
        documents = _pack(Room(source), [_layout(one) for one in shown])
        labels = {label for _, label in shown}
        for number, (text, label) in enumerate(asked):
            if label in labels:
                yield Sample(
                    id=f"{number:05d}",
                    documents=documents,
                    tail=f"{SEPARATOR}{text}\nlabel:",
                    answers=(label,),
                    notes={"demonstrations": len(shown), "labels": len(labels)},
                )

    return load


def _layout(one: Labelled) -> str:
    text, label = one
    return f"{text}\nlabel: {label}"


def _demonstrations(source: Source, known: Iterable[Labelled]) -> list[Labelled]:
    """Draw one text of each label, then a second of each, until the room is full; then mix them."""
    rng = random.Random(f"{source.seed}/{source.task}/demonstrations")
    by_label: dict[str, list[Labelled]] = defaultdict(list)
    for one in dict.fromkeys(known):
        by_label[one[1]].append(one)
    room = Room(source)
    left = room.tokens
    chosen: list[Labelled] = []
    piles = [rng.sample(texts, len(texts)) for texts in rng.sample(list(by_label.values()), len(by_label))]
    for turn in zip_longest(*piles):
        for one in turn:
            if one is None:
                continue
            left -= room.size(_layout(one))
            if left < 0:
                return _fitting(source, chosen, rng)
            chosen.append(one)
    return _fitting(source, chosen, rng)


def _fitting(source: Source, chosen: list[Labelled], rng: random.Random) -> list[Labelled]:
    """Leave out the last ones, should they need more tokens together than one by one."""
    while chosen and source.count(SEPARATOR.join(map(_layout, chosen))) > source.room:
        chosen = chosen[:-1]
    return rng.sample(chosen, len(chosen))


def _pack(room: Room, texts: Sequence[str]) -> tuple[str, ...]:
    """Put demonstrations together as documents."""
    documents: list[list[str]] = []
    size = _TOKENS_PER_DOCUMENT
    for text in texts:
        if size + room.size(text) > _TOKENS_PER_DOCUMENT:
            documents.append([])
            size = 0
        documents[-1].append(text)
        size += room.size(text)
    return tuple(SEPARATOR.join(parts) for parts in documents)


def _score(sample: Sample, prediction: str) -> Scores:
    return accuracy(prediction, sample.answers)


_TREC_FILES = {"train": ("train_5500.label",), "test": ("TREC_10.label",)}
_TREC_SOURCE = "TREC question classes, Li and Roth 2002; no licence named"
_BANKING_FILES = {
    "train": ("banking77_train.jsonl", "train.csv"),
    "test": ("banking77_test.jsonl", "test.csv"),
}


def _task(name: str, splits: Callable[[Source], Splits], files: Mapping[str, tuple[str, ...]], published: str) -> Task:
    return Task(
        name=f"icl/{name}",
        load=_loader(splits),
        score=_score,
        metric="accuracy",
        n_new=24,
        files=files,
        source=published,
        lm_needed=True,
    )


TASKS: tuple[Task, ...] = (
    _task("own", _own, {}, ""),
    _task("trec_coarse", _trec(fine=False), _TREC_FILES, _TREC_SOURCE),
    _task("trec_fine", _trec(fine=True), _TREC_FILES, _TREC_SOURCE),
    _task(
        "nlu",
        _nlu,
        {"test": ("nlu_home_kfold1.jsonl",)},
        "NLU-Evaluation-Data, Liu et al. 2019, first fold; CC BY 4.0",
    ),
    _task("banking77", _two_files, _BANKING_FILES, "BANKING77, Casanueva et al. 2020; CC BY 4.0"),
    _task(
        "clinc150",
        _clinc,
        {"test": ("clinc150_full.jsonl", "data_full.json")},
        "CLINC150, Larson et al. 2019; CC BY 3.0",
    ),
)
