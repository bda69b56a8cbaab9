"""The next line of a file is asked for after the files that it needs; own samples are Python that runs on."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from ultragist_rag.evaluation.data import Source
from ultragist_rag.evaluation.task import Sample, Task
from ultragist_rag.evaluation.tasks.code import TASKS
from ultragist_rag.evaluation.tasks.shipped import shipped

OWN, REPOBENCH = TASKS


def load(task: Task, **settings: Any) -> list[Sample]:
    words = {"room": 400, "count": lambda text: len(text.split()), "task": task.name, "files": task.files}
    return list(task.load(Source(**{**words, **settings})))


def test_own_samples_are_whole_and_their_next_line_belongs_there() -> None:
    samples, projects = load(OWN), shipped("modules.yaml")
    assert len({sample.id for sample in samples}) == len(samples) == len(projects) >= 8
    for sample, project in zip(samples, projects, strict=True):
        assert len(sample.documents) == len(project["files"])
        assert sample.tail == f"\n\n# {project['path']}\n{project['code']}"
        for path, code in project["files"].items():
            compile(code, path, "exec")
        opened = "\n        pass" if project["next"].endswith(":") else ""
        compile(project["code"] + project["next"] + opened, project["path"], "exec")
        assert project["next"].strip() not in "".join(sample.documents)
    assert load(OWN, seed=1) == samples


def test_what_is_needed_is_imported_from_gold_documents() -> None:
    for sample in load(OWN):
        for place in sample.gold:
            path = sample.documents[place].splitlines()[0].removeprefix("# ").removesuffix(".py")
            assert f"from {path.replace('/', '.')} import" in sample.tail


@pytest.mark.parametrize("room", [40, 60, 80])
def test_files_that_are_needed_are_kept_first(room: int) -> None:
    whole = {sample.id: sample for sample in load(OWN)}
    n_left_out = 0
    for sample in load(OWN, room=room):
        assert len("\n\n".join(sample.documents).split()) <= room
        assert len(sample.tail.split()) <= room // 2 or sample.tail.count("\n") == 3
        gold = [whole[sample.id].documents[place] for place in whole[sample.id].gold]
        if all(len(text.split()) <= room for text in gold):
            assert [sample.documents[place] for place in sample.gold] == gold
        n_left_out += len(whole[sample.id].documents) - len(sample.documents)
    assert n_left_out


def test_the_line_itself_scores_one_whatever_follows_it() -> None:
    for sample in load(OWN):
        (right,) = sample.answers
        assert OWN.score(sample, right) == OWN.score(sample, f"\n# so\n    {right}\n    more()") == {"edit": 1.0}
        assert OWN.score(sample, "") == {"edit": 0.0}
        assert OWN.score(sample, "¤") == {"edit": 0.0}
        assert 0 < OWN.score(sample, right[:-1])["edit"] < 1


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_repobench_is_read(suffix: str, tmp_path: Path) -> None:
    record = {
        "file_path": "pkg/main.py",
        "context": [
            {"identifier": "f", "path": "pkg/a.py", "snippet": "def f():\n    return 1"},
            {"identifier": "g", "path": "pkg/b.py", "snippet": "x = 1\n" * 200},
            {"identifier": "h", "path": "pkg/c.py", "snippet": "def h():\n    return 2"},
        ],
        "import_statement": "from pkg.c import h",
        "cropped_code": "\n\ndef main():\n    value = 1\n",
        "next_line": "    return h() + value",
        "gold_snippet_index": 2,
    }
    lines = "".join(json.dumps(one) + "\n" for one in (record, {**record, "gold_snippet_index": -1})).encode()
    path = tmp_path / f"repobench.jsonl{suffix}"
    path.write_bytes(lzma.compress(lines) if suffix else lines)
    first, second = load(REPOBENCH, place=tmp_path)
    a, c = "# pkg/a.py\ndef f():\n    return 1", "# pkg/c.py\ndef h():\n    return 2"
    assert first.documents == second.documents == (a, c)
    assert (first.gold, second.gold) == ((1,), ())
    assert first.tail == "\n\n# pkg/main.py\nfrom pkg.c import h\n\n\ndef main():\n    value = 1\n"
    assert first.answers == ("return h() + value",)
    (only, _) = load(REPOBENCH, place=tmp_path, room=10)
    assert (only.documents, only.gold) == ((c,), (0,))
    assert only.tail.endswith("    value = 1\n")
    assert "import" not in only.tail


def test_a_record_of_which_nothing_fits_is_left_out(tmp_path: Path) -> None:
    record = {
        "context": [{"path": "a.py", "snippet": "x = 1\n" * 100}, {"path": "b.py", "snippet": "y = 2"}],
        "cropped_code": "import a",
        "next_line": "a.x",
    }
    (tmp_path / "repobench.jsonl").write_text(json.dumps(record), encoding="utf-8")
    assert load(REPOBENCH, place=tmp_path, room=3) == []
    (sample,) = load(REPOBENCH, place=tmp_path, room=20)
    assert sample.documents == ("# b.py\ny = 2",)
