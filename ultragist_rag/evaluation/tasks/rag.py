"""Retrieval-augmented question answering: the document that answers, among others.

Is        readers of the formats that such data come in, and the tasks of the suite `rag`.
Flow      rows, fitting, heldout, rag_own -> [rag] -> tasks.
Paper     arXiv 2412.17483, table 8: substring exact match (SubEM), exact match, F1.
Change    which files there are, how many documents stand beside the right one.
Not here  lists of passages that were retrieved for a question -> rag_retrieved.py; our own places -> rag_own.py.
Holds     documents are shuffled by seed and sample alone; what is gold holds the answer.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ultragist_rag.evaluation.data import MissingDataError, Source
from ultragist_rag.evaluation.heldout import Case, corpus_cases, factbook_cases
from ultragist_rag.evaluation.scores import qa_scores
from ultragist_rag.evaluation.task import Sample, Scores, Task
from ultragist_rag.evaluation.tasks.fitting import Room
from ultragist_rag.evaluation.tasks.rag_own import NEW, TRAINED, invented_samples
from ultragist_rag.evaluation.tasks.rag_retrieved import retrieved_samples
from ultragist_rag.evaluation.tasks.rows import Row, rows

__all__ = ["TASKS"]

_N_DOCUMENTS, _DRAWN = 4, 12


class _Asked(NamedTuple):
    """A question, its answers, the title and the text that it is about, and its condition."""

    question: str
    answers: tuple[str, ...]
    title: str
    text: str
    group: str = ""

    @property
    def document(self) -> str:
        return f"{self.title}\n\n{self.text}" if self.title else self.text


def _tail(question: str) -> str:
    return f"\n\nQuestion: {question}\nAnswer:"


def _score(sample: Sample, prediction: str) -> Scores:
    return qa_scores(prediction, sample.answers)


def _corpus(source: Source) -> Iterator[Sample]:
    """Questions about the profiles of the example corpus, which lies in the folder `corpus` beside the questions."""
    questions = source.path()
    corpus = questions.parent / "corpus"
    if not corpus.is_dir():
        raise MissingDataError(f"{source.task} is left out: {corpus} is missing.")
    return _of_cases(source, corpus_cases(corpus, questions, source.seed))


def _factbook(source: Source) -> Iterator[Sample]:
    """Questions about the factbook's own sections, for the countries that training never saw."""
    source.path("questions")
    return _of_cases(source, factbook_cases(source.path("profiles").parents[1], source.seed))


def _of_cases(source: Source, cases: Iterable[Case]) -> Iterator[Sample]:
    """The cases in an order of chance, so that every so many of them are of all kinds.

    Documents that do not fit are left out, and cases whose gold document does not.
    """
    room, order = Room(source), list(enumerate(cases))
    random.Random(f"{source.seed}/order").shuffle(order)
    for number, case in order:
        gold = case.documents[case.gold]
        kept = room.fill([gold], (text for text in case.documents if text != gold), len(case.documents))
        if kept is None:
            continue
        documents = tuple(text for text in case.documents if text in kept)
        yield Sample(
            id=f"{source.task.partition('/')[2]}-{number:04d}",
            documents=documents,
            tail=_tail(case.question),
            answers=case.answers,
            gold=(documents.index(gold),),
            group=NEW if case.heldout else TRAINED,
        )


def _among_others(asked: Callable[[Source], Iterator[_Asked]]) -> Callable[[Source], Iterator[Sample]]:
    """Make a loader: each text among others of the file, one with the same title if there is one.

    Others that hold an answer are not taken. A question whose own text is longer than the room is left out.
    """

    def load(source: Source) -> Iterator[Sample]:
        room, every = Room(source), list(asked(source))
        pool = {one.document: one for one in every}
        documents = list(pool)
        by_title: dict[str, list[str]] = {}
        for text, one in pool.items():
            by_title.setdefault(one.title, []).append(text)
        for number, one in enumerate(every):
            name = f"{source.task.partition('/')[2]}-{number:04d}"
            rng = random.Random(f"{source.seed}/{name}")
            drawn = _draw(one, by_title[one.title], documents, rng)
            chosen = room.fill([one.document], drawn, _N_DOCUMENTS)
            if chosen is None:
                continue
            rng.shuffle(chosen)
            gold = (chosen.index(one.document),)
            yield Sample(
                id=name,
                documents=tuple(chosen),
                tail=_tail(one.question),
                answers=one.answers,
                gold=gold,
                group=one.group,
            )

    return load


def _draw(one: _Asked, near: Sequence[str], documents: Sequence[str], rng: random.Random) -> list[str]:
    """Other documents, one with the same title first; none that holds an answer."""
    same = [text for text in near if text != one.document]
    drawn = rng.sample(same, min(1, len(same))) + rng.sample(documents, min(_DRAWN, len(documents)))
    answers = [answer.lower() for answer in one.answers]
    kept = [text for text in drawn if text != one.document and not any(answer in text.lower() for answer in answers)]
    return list(dict.fromkeys(kept))


def _passages(source: Source) -> Iterator[_Asked]:
    """Rows with question, context and answers, or the nested form in which SQuAD was published."""
    for row in rows(source):
        if "data" not in row.values:
            yield _passage(row, row.values.get("title", ""), row)
            continue
        for article in row.parts("data"):
            for paragraph in article.parts("paragraphs"):
                for asked in paragraph.parts("qas"):
                    yield _passage(asked, article.values.get("title", ""), paragraph)


def _passage(asked: Row, title: str, text: Row) -> _Asked:
    answers = asked.values.get("answers")
    if isinstance(answers, list) and answers and all(isinstance(one, dict) for one in answers):
        found = tuple(dict.fromkeys(one.text("text") for one in asked.parts("answers")))
    else:
        found = asked.answers("answers")
    return _Asked(asked.text("question"), found, title.replace("_", " "), text.text("context"))


def _sentences(source: Source) -> Iterator[_Asked]:
    """Sections of articles, of which one sentence or more answer; as rows of their text, or as it was published."""
    for row in rows(source):
        if "candidates" in row.values:
            sentences = [str(one) for one in row.items("candidates")]
            places = row.items("answers")
            if not places or not all(isinstance(one, int) and 0 <= one < len(sentences) for one in places):
                raise row.wrong("answers", "a list of places in candidates")
            text, answers = " ".join(sentences), tuple(sentences[one] for one in places)
        else:
            text, answers = row.text("context"), row.answers("answer_sentences")
        title = f"{row.text('title', 'article')} - {row.text('section')}"
        yield _Asked(row.text("question"), answers, title, text.strip())


def _reports(source: Source) -> Iterator[_Asked]:
    """Tables of financial reports with the paragraphs around them; several spans are one answer, in their order."""
    for row in rows(source):
        lines = [_cells(line, row) for line in row.part("table").items("table")]
        text = "\n\n".join(["\n".join(lines), *(one.text("text") for one in row.parts("paragraphs"))])
        for asked in row.parts("questions"):
            found = asked.answers("answer")
            kind = asked.text("answer_type")
            answers = (", ".join(found),) if len(found) > 1 else found
            yield _Asked(asked.text("question"), answers, "", text, kind)


def _cells(line: object, row: Row) -> str:
    if not isinstance(line, list):
        raise row.wrong("table", "a list of lists of cells")
    return " | ".join(" ".join(str(cell).split()) for cell in line)


def _tables(source: Source) -> Iterator[_Asked]:
    """Tables as CSV with questions; several values are one answer, in their order."""
    for row in rows(source):
        read = csv.reader(io.StringIO(row.text("csv")), escapechar="\\", doublequote=False)
        text = "\n".join(_cells(line, row) for line in read)
        for asked in row.parts("qas"):
            yield _Asked(asked.text("question"), (", ".join(asked.answers("answers")),), row.text("title"), text)


def _task(
    name: str,
    load: Callable[[Source], Iterator[Sample]],
    files: Sequence[str],
    source: str,
    n_new: int = 32,
    metric: str = "subem",
) -> Task:
    """A task on published data; models of a few million parameters are too small for it."""
    return Task(
        name=f"rag/{name}",
        load=load,
        score=_score,
        metric=metric,
        n_new=n_new,
        files={"test": tuple(files)},
        source=source,
        lm_needed=True,
    )


TASKS: tuple[Task, ...] = (
    Task(name="rag/invented", load=invented_samples, score=_score, metric="subem"),
    Task(
        name="rag/corpus",
        load=_corpus,
        score=_score,
        metric="subem",
        files={"test": ("corpus_questions.jsonl",)},
        source="figures of the CIA World Factbook, public domain; sentences of our own",
    ),
    Task(
        name="rag/factbook",
        load=_factbook,
        score=_score,
        metric="subem",
        files={"profiles": ("train/factbook.jsonl.xz",), "questions": ("qa_train/factbook_template_qa.jsonl.xz",)},
        source="CIA World Factbook, public domain; questions from templates",
    ),
    _task(
        "xquad",
        _among_others(_passages),
        ("xquad_en.jsonl", "xquad.en.json"),
        "XQuAD (English), CC BY-SA 4.0",
        32,
    ),
    _task("policyqa", _among_others(_passages), ("policyqa_test.jsonl",), "PolicyQA, MIT", 64),
    _task(
        "selqa",
        _among_others(_sentences),
        ("selqa_test.jsonl", "selqa-ass-test.json"),
        "SelQA, Apache-2.0; Wikipedia, CC BY-SA",
        n_new=96,
        metric="f1",
    ),
    _task(
        "tatqa",
        _among_others(_reports),
        ("tatqa_dev.jsonl", "tatqa_dataset_dev.json"),
        "TAT-QA, CC BY 4.0",
        48,
    ),
    _task(
        "tables",
        _among_others(_tables),
        ("wikitablequestions_test.jsonl",),
        "WikiTableQuestions, CC BY-SA 4.0",
        32,
    ),
    *(
        _task(name, retrieved_samples, files, source, 32)
        for name, files, source in (
            ("nq", ("nq.jsonl", "nq-dev-multikilt_1000_k50_dep6.jsonl"), "Natural Questions, CC BY-SA 3.0"),
            ("triviaqa", ("triviaqa.jsonl", "triviaqa-dev-multikilt_1000_k50_dep6.jsonl"), "TriviaQA, Apache-2.0"),
            ("popqa", ("popqa.jsonl", "popqa_test_1000_k50_dep6.jsonl"), "PopQA, MIT"),
            (
                "hotpotqa",
                ("hotpotqa.jsonl", "hotpotqa-dev-multikilt_1000_k50_dep3.jsonl", "hotpot_dev_distractor_v1.json"),
                "HotpotQA, CC BY-SA 4.0",
            ),
        )
    ),
)
