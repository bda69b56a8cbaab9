"""Tasks of lm-eval as rows: our own task end to end, data from a folder, and how answers are read and scored."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.model import LM

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import weak
from ultragist_rag.evaluation.data import MissingDataError
from ultragist_rag.evaluation.lm_data import LM_TASKS, bbh, everyday, gsm8k, piqa
from ultragist_rag.evaluation.weak import OWN_TASKS, run_lm_eval


class Says(LM):
    """Answers every prompt by the same text and finds longer continuations likelier."""

    method, ratio = "full", None

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.sizes, self.prompts = text, {}, []

    def loglikelihood(self, requests: Any) -> Any:
        self.prompts += [request.args[0] for request in requests]
        return [(float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        return [-float(len(request.args[0])) for request in requests]

    def generate_until(self, requests: Any) -> Any:
        self.prompts += [request.args[0] for request in requests]
        return [self.text for _ in requests]


def says(text: str, task: str, folder: Path | None, num_fewshot: int | None = None) -> tuple[list[Any], list[str]]:
    """Rows of a task whose every answer is a text, and the prompts."""
    model = Says(text)
    with weak._quiet():
        loaded = weak._load([task], None, folder)
        weak._set_examples(loaded["tasks"].values(), num_fewshot)
        return weak._run(model, loaded, None, 0), model.prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as they are published, with content of our own."""
    place = tmp_path_factory.mktemp("data")
    (place / "gsm8k").mkdir()
    problems = [{"question": f"{n} and 1?", "answer": f"It is {n} + 1.\n#### {n + 1:,}"} for n in (6, 1999)]
    lines = "\n".join(map(json.dumps, problems))
    (place / "gsm8k" / "test.jsonl").write_text(lines)
    with lzma.open(place / "gsm8k" / "train.jsonl.xz", "wt") as file:
        file.write("\n".join(json.dumps({"question": f"{n}?", "answer": f"Yes.\n#### {n}"}) for n in range(20)))
    (place / "bbh" / "bbh").mkdir(parents=True)
    (place / "bbh" / "cot-prompts").mkdir()
    for name, n_examples in (("boolean_expressions", 10), ("navigate", 9)):
        examples = [{"input": f"{name} {n} is", "target": f"({'AB'[n % 2]})"} for n in range(n_examples)]
        (place / "bbh" / "bbh" / f"{name}.json").write_text(json.dumps({"canary": "", "examples": examples}))
    (place / "bbh" / "cot-prompts" / "navigate.txt").write_text("A note.\n-----\nWorked {example}.")
    goals = [{"goal": f"goal {n}", "sol1": "long way", "sol2": "way"} for n in range(40)]
    (place / "valid.jsonl").write_text("\n".join(map(json.dumps, goals)))
    (place / "valid-labels.lst").write_text("\n".join(str(n % 2) for n in range(40)))
    return place


def test_our_own_task_runs_twice_alike_without_download_and_is_condensed(text_engine, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("a data set is loaded from elsewhere"))
    states = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    settings = {"ratios": (4, 8), "limit": 2, "num_fewshot": 6}
    first, second = (run_lm_eval(text_engine, ["ultragist_everyday"], **settings) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))
    assert states == (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    assert [(row["method"], row["ratio"], row["id"]) for row in first] == [
        (*cell, sample) for cell in (("full", None), ("gist", 4), ("gist", 8)) for sample in ("0", "1")
    ]
    plain, four, eight = first[::2]
    assert plain["task"] == "lm-eval/ultragist_everyday"
    assert plain["slots"] == plain["tokens"] == four["tokens"] == eight["tokens"] > 6 * 64
    assert eight["slots"] < four["slots"] < plain["tokens"] / 2
    assert all(set(row["scores"]) == {"acc", "acc_norm"} for row in first)
    assert all(row["prediction"] in ("nine", "twenty", "fifteen", "one") for row in first[::2])


def test_the_questions_of_our_own_task_have_four_choices_and_every_place_is_right_as_often():
    splits = everyday()
    assert [len(splits[name]) for name in ("test", "examples")] == [24, 24]
    for split in splits.values():
        assert all(len(set(record["choices"])) == 4 for record in split)
        assert Counter(record["answer"] for record in split) == dict.fromkeys(range(4), 6)
    assert not set(splits["test"]["question"]) & set(splits["examples"]["question"])


def test_a_task_with_data_from_a_folder_runs_end_to_end(text_engine, folder):
    rows = run_lm_eval(text_engine, ["ultragist_piqa"], methods=("gist",), limit=2, num_fewshot=6, data=folder)
    assert [row["prediction"] in ("long way", "way") for row in rows] == [True, True]
    assert all(row["slots"] < row["tokens"] for row in rows)


@pytest.mark.parametrize(
    ("text", "scores"),
    [("It is 6 + 1. So it is 7.", [1, 0]), ("#### 2000", [0, 1]), ("2,000", [0, 1]), ("I do not know.", [0, 0])],
)
def test_the_last_number_of_an_answer_counts(folder, text, scores):
    rows, prompts = says(text, "ultragist_gsm8k", folder)
    assert [row["scores"]["exact_match"] for row in rows] == scores
    assert rows[0]["prediction"] == text
    assert prompts[0].count("####") == 16
    assert prompts[0].endswith("\n\nQuestion: 6 and 1?\nAnswer:")


@pytest.mark.parametrize(
    "text", [" (A)", "First this. So the answer is (A).", "The answer is (B), no: the answer is (A).\n"]
)
def test_answers_with_and_without_reasons_are_read(folder, text):
    rows, prompts = says(text, "ultragist_bbh", folder, num_fewshot=3)
    assert [row["group"] for row in rows[:5]] == ["boolean_expressions", "navigate"] * 2 + ["navigate"]
    assert {row["group"]: row["scores"]["exact_match"] for row in rows[:2]} == {"boolean_expressions": 1, "navigate": 1}
    assert sum(row["scores"]["exact_match"] for row in rows) == 1 + 5
    assert prompts[1] == "Worked {example}.\n\nQ: navigate 0 is\nA: Let's think step by step."
    assert prompts[0].startswith("Q: boolean_expressions 0 is\nA: (A)\n\nQ: boolean_expressions 1 is\nA: (B)")
    assert prompts[0].endswith("\n\nQ: boolean_expressions 8 is\nA:")
    assert len(rows) == 2 + 9  # eight of the ten without worked examples are examples themselves


def test_the_likelier_way_is_chosen_and_held_against_the_label(folder):
    rows, _ = says("", "ultragist_piqa", folder, num_fewshot=0)
    assert {row["prediction"] for row in rows} == {"long way"}
    assert [row["scores"]["acc"] for row in rows] == [1 - n % 2 for n in range(40)]


def test_labels_within_records_are_taken_too(tmp_path):
    (tmp_path / "piqa_valid.jsonl").write_text(json.dumps({"goal": "g", "sol1": "a", "sol2": "b", "label": 1}))
    assert piqa(data=str(tmp_path))["test"][0]["ways"] == ["a", "b"]


def test_missing_and_damaged_data_are_named(tmp_path, text_engine):
    for task in OWN_TASKS[1:]:
        with pytest.raises(MissingDataError, match=task):
            run_lm_eval(text_engine, [task])
    (tmp_path / "train.jsonl").write_text("{}")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "?", "answer": "none"}))
    with pytest.raises(InputError, match="no GSM8K file"):
        gsm8k(data=str(tmp_path))
    (tmp_path / "boolean_expressions.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        bbh(data=str(tmp_path))


def test_a_task_file_of_ones_own_is_run_and_what_is_put_together_over_a_task_is_scored_by_sample(tmp_path):
    head = "custom_dataset: !function ultragist_rag.evaluation.lm_data.everyday\ntest_split: test\ndoc_to_text: ''\n"
    path = tmp_path / "text.yaml"
    path.write_text(f"task: text\noutput_type: loglikelihood_rolling\ndoc_to_target: question\n{head}")
    rows, _ = says("", str(path), None)
    assert set(rows[0]["scores"]) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert rows[0]["scores"]["byte_perplexity"] == pytest.approx(2.718281828)  # one nat for each byte
    assert (rows[0]["slots"], rows[0]["prediction"]) == (None, "")


def test_without_lm_eval_the_extra_is_named(text_engine, monkeypatch):
    monkeypatch.delitem(sys.modules, "ultragist_rag.evaluation.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(InputError, match=r"ultragist-rag\[eval\]"):
        run_lm_eval(text_engine, ["ultragist_everyday"])


def test_every_task_file_is_named_by_its_task():
    assert sorted(path.stem for path in LM_TASKS.glob("*.yaml")) == sorted(OWN_TASKS)


@pytest.mark.slow
def test_unknown_tasks_and_tasks_that_cannot_be_downloaded_are_named(text_engine):
    with pytest.raises(InputError, match="no task 'nowhere'"):
        run_lm_eval(text_engine, ["nowhere"])
    with pytest.raises(MissingDataError, match="hellaswag"):
        run_lm_eval(text_engine, ["hellaswag"])


@pytest.mark.slow
def test_lm_evals_command_knows_the_model_when_started_from_here(tmp_path, model_folders):
    given = f"pretrained={model_folders[0]},method=gist,ratio=4"
    command = [sys.executable, "-m", "ultragist_rag.evaluation.harness", "run", "--model", "ultragist"]
    command += ["--model_args", given, "--tasks", "ultragist_everyday", "--include_path", str(LM_TASKS)]
    command += ["--limit", "1", "--output_path", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    (path,) = tmp_path.rglob("results*.json")
    assert json.loads(path.read_text())["config"]["ratio"] == 4
