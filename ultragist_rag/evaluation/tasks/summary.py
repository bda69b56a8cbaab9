"""Summaries: of reports of our own, of novels, of court cases, of meetings.

Is        readers of the formats that such data come in, and the tasks of the suite `summary`.
Flow      rows, fitting, reports.yaml -> [summary] -> tasks.
Paper     arXiv 2412.17483, table 8: InfiniteBench sum, Multi-LexSum; QMSum besides; ROUGE.
Change    which files there are, how a summary is asked for, what is kept of a text that is too long.
Holds     of a text that is too long the beginning is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.scores import rouge
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import SEPARATOR, Room
from ultragist_rag.evaluation.tasks.rows import Row, rows
from ultragist_rag.evaluation.tasks.shipped import shipped

__all__ = ["TASKS"]

_N_SHORT, _N_LONG = 96, 512
_FEWEST = 16
"""Tokens below which the rest of a room is left empty."""


def _sample(source: Source, name: str, texts: Sequence[str], asked: str, answers: Sequence[str]) -> Sample:
    return Sample(
        id=name,
        documents=_kept(source, texts),
        tail=f"{SEPARATOR}{asked}\nSummary:",
        answers=tuple(answers),
    )


def _kept(source: Source, texts: Sequence[str]) -> tuple[str, ...]:
    """Fill the room with texts in order; the last one that has room is cut."""
    room = Room(source)
    left = room.tokens
    kept: list[str] = []
    for text in texts:
        if kept and left < _FEWEST:
            break
        kept.append(room.cut(text, evidence=(0, len(text)), room=left))  # what is kept is the beginning
        left -= source.count(SEPARATOR + kept[-1] + SEPARATOR)
    while len(kept) > 1 and source.count(SEPARATOR.join(kept)) > source.room:
        del kept[-1]
    return tuple(kept)


def _own(source: Source) -> Iterator[Sample]:
    for report in shipped("reports.yaml"):
        paragraphs = report["text"].strip().split("\n\n")
        yield _sample(source, report["id"], paragraphs, "Summarise the report in two sentences.", [report["summary"]])


def _novels(source: Source) -> Iterator[Sample]:
    for number, row in enumerate(rows(source)):
        yield _sample(
            source, f"{number:04d}", [row.text("context")], "Summarise the book.", row.answers("answer", "answers")
        )


def _cases(source: Source) -> Iterator[Sample]:
    """Yield court cases, each with its filings; one without a long summary is left out."""
    for number, row in enumerate(rows(source)):
        if row.first(("summary/long",)) is None:
            continue
        filings = row.items("sources")
        if not filings or not all(isinstance(one, str) for one in filings):
            raise row.wrong("sources", "a list of texts")
        yield _sample(source, f"{number:04d}", filings, "Summarise the case.", [row.text("summary/long")])


def _meetings(source: Source) -> Iterator[Sample]:
    """Yield meetings with each question about the whole of them."""
    for number, row in enumerate(rows(source)):
        transcript = "\n".join(_turn(turn) for turn in row.parts("meeting_transcripts"))
        for place, query in enumerate(row.parts("general_query_list")):
            asked = query.text("query").strip()
            asked = asked if asked.endswith((".", "?")) else f"{asked}."
            yield _sample(source, f"{number:04d}-{place}", [transcript], asked, query.answers("answer"))


def _turn(turn: Row) -> str:
    return f"{turn.values.get('speaker', '')}: {turn.values.get('content', '')}"


def _score(sample: Sample, prediction: str) -> Scores:
    return rouge(prediction, sample.answers)


def _task(
    name: str,
    load: Callable[[Source], Iterator[Sample]],
    n_new: int,
    files: tuple[str, ...] = (),
    published: str = "",
) -> Task:
    return Task(
        name=f"summary/{name}",
        load=load,
        score=_score,
        metric="rougeLsum",
        n_new=n_new,
        stop=("\n\n",),
        files={"test": files} if files else {},
        source=published,
        lm_needed=True,
    )


TASKS: tuple[Task, ...] = (
    _task("own", _own, _N_SHORT),
    _task(
        "infbench",
        _novels,
        _N_LONG,
        ("longbook_sum_eng.jsonl",),
        "InfiniteBench, Zhang et al. 2024; MIT",
    ),
    _task(
        "multilexsum",
        _cases,
        _N_LONG,
        ("multi_lexsum.jsonl", "multi_lexsum_test.jsonl", "multi_lexsum_validation.jsonl"),
        "Multi-LexSum, Shen et al. 2022; ODC-By",
    ),
    _task(
        "qmsum",
        _meetings,
        _N_LONG // 2,
        ("qmsum_val.jsonl",),
        "QMSum, Zhong et al. 2021; MIT",
    ),
)
