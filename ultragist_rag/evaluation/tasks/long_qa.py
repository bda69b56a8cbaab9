"""Questions about one long document: free answers, and choices.

Is        the tasks of the suite `longqa`, and the readers of their formats.
Flow      rows, fitting, long_own -> [long_qa] -> tasks.
Paper     arXiv 2412.17483, table 8: InfiniteBench, arXiv 2402.13718; QMSum, arXiv 2104.05938; PubMedQA,
          arXiv 1909.06146.
Change    which files there are, how they are asked and scored.
Not here  how a text is cut -> fitting.py; the reports of our own -> long_own.py.
Holds     every document fits the room: it is cut around the evidence if that is known, else beginning and end stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.scores import accuracy, rouge
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.long_own import choice_samples, long_samples
from ultragist_rag.evaluation.tasks.rows import Row, rows

__all__ = ["TASKS"]

_LETTERS = "ABCD"
_VERDICTS = ("yes", "no", "maybe")


def _recall(sample: Sample, prediction: str) -> Scores:
    return rouge(prediction, sample.answers, measure="recall")


def _overlap(sample: Sample, prediction: str) -> Scores:
    return rouge(prediction, sample.answers)


def _accuracy(sample: Sample, prediction: str) -> Scores:
    return accuracy(prediction, sample.answers)


def _sample(name: str, document: str, question: str, answers: tuple[str, ...], group: str = "") -> Sample:
    tail = f"\n\nQuestion: {question}\nAnswer:"
    return Sample(id=name, documents=(document,), tail=tail, answers=answers, gold=(0,), group=group)


def _book_questions(source: Source) -> Iterator[Sample]:
    """Questions about novels; the evidence is not known, so beginning and end of a novel stay."""
    cut = lru_cache(maxsize=1)(Room(source).cut)  # the questions of a novel stand together
    for row in rows(source):
        name = f"infbench-qa-{row.number - 1:04d}"
        yield _sample(name, cut(row.text("context")), row.text("input"), row.answers("answer"))


def _book_choices(source: Source) -> Iterator[Sample]:
    """Questions about novels with four choices; beginning and end of a novel stay."""
    cut = lru_cache(maxsize=1)(Room(source).cut)
    for row in rows(source):
        options = [str(option).strip() for option in row.items("options")]
        answers = row.answers("answer")
        if answers[0] not in options and answers[0] in _LETTERS[: len(options)]:
            answers = (options[_LETTERS.index(answers[0])],)
        if answers[0] not in options:
            raise row.wrong("answer", "one of the options, or its letter")
        yield Sample(
            id=f"infbench-choice-{row.number - 1:04d}",
            documents=(cut(row.text("context")),),
            tail=f"\n\nQuestion: {row.text('input')}\nAnswer:",
            answers=answers,
            gold=(0,),
            choices=tuple(f" {option}" for option in options),
        )


def _meetings(source: Source) -> Iterator[Sample]:
    """Queries about transcripts of meetings.

    A transcript is cut around the turns that a specific query is about; for a query about all of it, beginning and end
    stay.
    """
    room = Room(source)
    for row in rows(source):
        turns = [f"{one.text('speaker')}: {_said(one)}" for one in row.parts("meeting_transcripts")]
        starts = [0]
        for turn in turns:
            starts.append(starts[-1] + len(turn) + 1)
        text = "\n".join(turns)
        for kind in ("general", "specific"):
            for number, asked in enumerate(row.parts(f"{kind}_query_list")):
                evidence = _evidence(asked, starts) if kind == "specific" else None
                name = f"qmsum-{row.number - 1:03d}-{kind}-{number}"
                document = room.cut(text, evidence)
                yield _sample(name, document, asked.text("query"), asked.answers("answer"), kind)


def _said(turn: Row) -> str:
    content = turn.values.get("content")
    if not isinstance(content, str):  # it may be empty
        raise turn.wrong("content", "a text")
    return content


def _evidence(asked: Row, starts: list[int]) -> tuple[int, int] | None:
    """First and last character of the turns that a query is about."""
    try:
        places = [int(place) for span in asked.items("relevant_text_span") for place in span]
    except (TypeError, ValueError) as error:
        raise asked.wrong("relevant_text_span", "a list of pairs of turns") from error
    known = [min(place, len(starts) - 2) for place in places if place >= 0]
    return (starts[min(known)], starts[max(known) + 1] - 1) if known and len(starts) > 1 else None


def _abstracts(source: Source) -> Iterator[Sample]:
    """Questions that an abstract without its conclusion answers by yes, no or maybe; those for testing, if marked."""
    room = Room(source)
    for row in _abstract_rows(source):
        if row.values.get("split", "test") != "test":
            continue
        answer = row.text("answer", "final_decision").strip().lower()
        if answer not in _VERDICTS:
            raise row.wrong("answer", "yes, no or maybe")
        yield Sample(
            id=f"pubmedqa-{row.number - 1:04d}",
            documents=(room.cut(_abstract(row)),),
            tail=f"\n\nQuestion: {row.text('question', 'QUESTION')}\nAnswer:",
            answers=(answer,),
            gold=(0,),
            choices=tuple(f" {verdict}" for verdict in _VERDICTS),
            group=answer,
        )


def _abstract_rows(source: Source) -> Iterator[Row]:
    """Rows, or the values of the one object, by number of the article, in which the data were published."""
    for row in rows(source):
        if "question" in row.values:
            yield row
        else:
            for number, name in enumerate(row.values, start=1):
                yield Row(row.where, number, row.part(name).values)


def _abstract(row: Row) -> str:
    value = row.first(["context", "CONTEXTS"])
    value = value.get("contexts") if isinstance(value, dict) else value
    text = "\n".join(map(str, value)) if isinstance(value, list) else value
    if not isinstance(text, str) or not text.strip():
        raise row.wrong("context", "a text or a list of texts")
    return text


TASKS: tuple[Task, ...] = (
    Task(name="longqa/own", load=long_samples, score=_recall, metric="rougeLsum"),
    Task(name="longqa/choice_own", load=choice_samples, score=_accuracy, metric="accuracy", kind="choose", chance=0.25),
    Task(
        name="longqa/infbench_qa",
        load=_book_questions,
        score=_recall,
        metric="rougeLsum",
        files={"test": ("longbook_qa_eng.jsonl",)},
        source="InfiniteBench En.QA, Apache-2.0",
        lm_needed=True,
    ),
    Task(
        name="longqa/infbench_choice",
        load=_book_choices,
        score=_accuracy,
        metric="accuracy",
        kind="choose",
        chance=0.25,
        files={"test": ("longbook_choice_eng.jsonl",)},
        source="InfiniteBench En.MC, Apache-2.0",
        lm_needed=True,
    ),
    Task(
        name="longqa/qmsum",
        load=_meetings,
        score=_overlap,
        metric="rougeLsum",
        n_new=160,
        files={"test": ("qmsum_val.jsonl", "qmsum_test.jsonl")},
        source="QMSum, MIT; AMI and ICSI transcripts, CC BY 4.0",
        lm_needed=True,
    ),
    Task(
        name="longqa/pubmedqa",
        load=_abstracts,
        score=_accuracy,
        metric="accuracy",
        kind="choose",
        chance=1 / 3,
        files={"test": ("pubmedqa_labeled.jsonl", "ori_pqal.json")},
        source="PubMedQA, MIT",
        lm_needed=True,
    ),
)
