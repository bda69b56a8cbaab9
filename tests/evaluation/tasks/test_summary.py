"""Summaries are asked of whole texts or of their beginnings, and scored by ROUGE; files are read in their formats."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks.shipped import shipped
from ultragist_rag.evaluation.tasks.summary import TASKS

BY_NAME = {task.name: task for task in TASKS}
OWN = BY_NAME["summary/own"]


def load(task: Task, **settings: Any) -> list[Sample]:
    words = {"room": 400, "count": lambda text: len(text.split()), "task": task.name, "files": task.files}
    return list(task.load(Source(**{**words, **settings})))


def write(path: Path, *records: Any) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())


def test_own_reports_are_whole_where_there_is_room() -> None:
    samples = load(OWN)
    reports = shipped("reports.yaml")
    assert ["\n\n".join(sample.documents) for sample in samples] == [report["text"].strip() for report in reports]
    assert all(150 <= len(report["text"].split()) <= 250 > 4 * len(report["summary"].split()) for report in reports)
    assert all(" ".join(sample.answers[0].split()) == sample.answers[0] for sample in samples)
    assert len({sample.id for sample in samples}) == len(samples) == 8
    assert load(OWN, seed=1) == samples


@pytest.mark.parametrize("room", [50, 100, 150])
def test_of_long_texts_the_beginning_is_kept(room: int) -> None:
    for sample, report in zip(load(OWN, room=room), shipped("reports.yaml"), strict=True):
        shown = "\n\n".join(sample.documents)
        assert report["text"].startswith(shown)
        assert room * 0.7 < len(shown.split()) <= room


def test_the_summary_itself_scores_one_and_nothing_nothing() -> None:
    for sample in load(OWN):
        assert OWN.score(sample, sample.answers[0])[OWN.metric] == pytest.approx(1.0)
        assert OWN.score(sample, "")[OWN.metric] == 0.0
        assert 0 < OWN.score(sample, "\n".join(sample.documents))[OWN.metric] < 1


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_novels_have_one_summary_or_several(suffix: str, tmp_path: Path) -> None:
    record = {"id": 3, "context": "once " * 500, "input": "", "answer": ["He wins.", "She loses."]}
    write(tmp_path / f"longbook_sum_eng.jsonl{suffix}", record, {**record, "answer": "All go home."})
    first, second = load(BY_NAME["summary/infbench"], place=tmp_path)
    assert (first.answers, second.answers) == (("He wins.", "She loses."), ("All go home.",))
    (document,) = first.documents
    assert 360 < document.count("once") <= 400
    assert first.id != second.id


def test_cases_have_filings_as_documents_and_a_long_summary(tmp_path: Path) -> None:
    sources = ["filed " * 100, "heard " * 100, "appealed " * 500, "settled " * 100]
    record = {"sources": sources, "summary/long": "They settled.", "summary/short": "Settled."}
    write(tmp_path / "multi_lexsum.jsonl", {**record, "summary/long": None}, record)
    task = BY_NAME["summary/multilexsum"]
    (sample,) = load(task, place=tmp_path)
    words = [document.split()[0] for document in sample.documents]
    assert words == ["filed", "heard", "appealed"]
    assert [len(document.split()) for document in sample.documents[:2]] == [100, 100]
    assert 360 < sum(len(document.split()) for document in sample.documents) <= 400
    assert sample.answers == ("They settled.",)
    write(tmp_path / "multi_lexsum.jsonl", {**record, "sources": [1]})
    with pytest.raises(InputError, match=r"'sources' is .*a list of texts"):
        load(task, place=tmp_path)


def test_meetings_are_asked_as_a_whole(tmp_path: Path) -> None:
    record = {
        "general_query_list": [{"query": "Summarize the whole meeting", "answer": "They met."}],
        "specific_query_list": [{"query": "What did A say?", "answer": "Hello."}],
        "meeting_transcripts": [{"speaker": "A", "content": "Hello ."}, {"speaker": "B", "content": "Bye ."}],
    }
    write(tmp_path / "qmsum_val.jsonl.xz", record, record)
    first, second = load(BY_NAME["summary/qmsum"], place=tmp_path)
    assert first.documents == ("A: Hello .\nB: Bye .",)
    assert first.tail == "\n\nSummarize the whole meeting.\nSummary:"
    assert first.answers == ("They met.",)
    assert first.id != second.id
