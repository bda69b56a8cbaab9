"""A bar is met by the measured value; shares are of the better full text; batches score as single samples."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ultragist_rag import UltraGist
from ultragist_rag.cli import app
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import bars, report
from ultragist_rag.evaluation.asking import ask
from ultragist_rag.evaluation.batched import fitted_samples, score_samples
from ultragist_rag.evaluation.fitting import context_of
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.evaluation.methods import show
from ultragist_rag.evaluation.metrics import perplexity
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import suite_tasks

WORDS = "The river runs through the old town and the people there sell bread and cloth . "


def packed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    names = [f"Land {letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHI"]
    sections = [
        {
            "title": name,
            "section": "Government",
            "context": f"{name} - Government\n\nCapital\nname: Town {name[-1]}",
            "qas": [{"question": f"What is the capital of {name}?", "answers": [f"Town {name[-1]}"]}],
        }
        for name in names
    ]
    passages = [
        {"title": "River", "context": WORDS * 2, "question": f"What do they sell {n}?", "answers": ["bread"]}
        for n in range(3)
    ]
    for path, rows in {
        "train/factbook.jsonl.xz": [{"title": name} for name in names],
        "qa_train/factbook_template_qa.jsonl.xz": sections,
        "eval/xquad_en.jsonl.xz": passages,
        "eval/policyqa_test.jsonl.xz": passages,
    }.items():
        packed(folder / path, "".join(json.dumps(row) + "\n" for row in rows))
    packed(folder / "eval/wikitext2_valid.txt.xz", WORDS * 60)
    (folder / "corpus").mkdir()
    for name in ("Alba", "Bera", "Cora"):
        text = f"# {name}\n\n## Economy\n\n{name} sells bread.\n\n## Government\n\nThe capital of {name} is Town.\n"
        (folder / "corpus" / f"{name}.md").write_text(text, "utf-8")
    asked = {"question": "What does Alba sell?", "answer": "bread", "title": "Alba", "section": "Economy"}
    (folder / "corpus_questions.jsonl").write_text(json.dumps({**asked, "heldout": True}) + "\n", "utf-8")
    return folder


def row(method: str, ratio: int | None, score: float, kept: float, above: float | None = None) -> report.Row:
    around = (score, score - 0.1, score + 0.1)
    paired = None if above is None else (above, above - 0.5, above + 0.5)
    return report.Row("corpus", method, ratio, 10, around, (kept, 0.0, 2.0), paired, None, 0)


@pytest.mark.parametrize(("share", "met"), [(0.0, False), (-1e-3, False), (1e-3, True), (0.3, True)])
@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_a_bar_is_met_by_the_value_whatever_its_interval(ratio: int, share: float, met: bool) -> None:
    kept = bars.KEPT[ratio] + share if share else 0.5
    value, paired = bars.bars_of([row("composed", ratio, 0.7, kept, bars.AGAINST_JOINT + share - (share == 0))], [])
    assert (value.bar, value.met, paired.bar, paired.met) == (bars.KEPT[ratio], met, bars.AGAINST_JOINT, met)
    method = "composed" + report.HELD
    held, plain = bars.bars_of([row("composed", ratio, 0.7, kept), row(method, ratio, 0.7, kept)], [])
    assert (held.bar, held.met, held.what, held.plain) == (bars.KEPT[ratio], met, value.what, False)
    assert (plain.bar, plain.met, plain.plain) == (bars.KEPT[ratio], met, True)
    assert plain.what != held.what


def test_each_bar_of_the_full_text_and_none_of_the_rest() -> None:
    full, before, closed = bars.bars_of(
        [row("full", None, 0.81, 1.0), row(report.BEFORE, None, 0.3, 0.3), row("closed", None, 0.0, 0.0)], []
    )
    assert (full.bar, full.met) == (bars.FULL_TEXT, True)
    assert [bar.met for bar in (before, closed)] == [None, None]
    score = (0.9, 0.8, 1.0)
    rows = [
        bars.TaskRow("recall/uuid", "subem", "full", None, 10, (0.79, 0.7, 0.9), (1.0, 1.0, 1.0)),
        bars.TaskRow("recall/uuid", "subem", "gist+codes", 4, 10, score, (float("nan"),) * 3),
        bars.TaskRow("recall/mk_uuid", "subem", "gist+codes", 4, 10, score, score),
        bars.TaskRow("recall/number", "subem", "gist", 4, 10, score, (0.95, 0.5, 1.0)),
        bars.TaskRow("rag/xquad", "f1", "gist", 4, 10, score, None),
    ]
    held = {bar.what: bar.met for bar in bars.bars_of([], rows) if bar.bar is not None}
    assert list(held.values()) == [False, False, True]
    assert all("mk_uuid" not in what and "xquad" not in what for what in held)


def test_shares_are_of_the_better_full_text_and_differences_are_paired(
    text_engine: Any, model_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case(f"{n}?", ("yes",), ("text",), n < 3, 0) for n in range(10)]
    right, n_more = {"full": 6, "composed": 5, "joint": 7, "closed": 0}, 0

    before = UltraGist.from_pretrained(model_folders[1])

    def answers(
        engine: UltraGist, _cases: Sequence[Case], method: str, _ratio: int | None, source_bias: float
    ) -> list[str]:
        n_right = 8 if engine is before else right[method] + n_more * (source_bias == 3)
        return ["yes"] * n_right + ["no"] * (10 - n_right)

    monkeypatch.setattr(report, "predict", answers)
    for base, full in ((None, 6), (before, 8)):
        rows = {one.method: one for one in report.measure("corpus", cases, text_engine, base, (4,))}
        assert {name: one.retention[0] for name, one in rows.items() if name in right} == {
            name: count / full for name, count in right.items()
        }
        assert (report.BEFORE in rows) == (base is not None)
        value, low, high = rows["composed"].against_joint or (0.0, 0.0, 0.0)
        assert value == pytest.approx(-0.2)
        assert low < value < high <= 0
        assert rows["joint"].against_joint is None
        assert (rows["full"].unseen, rows["full"].n_unseen) == ((1.0, 1.0, 1.0), 3)
        for n_more in (-1, 1, 3):
            held = report.measure("corpus", cases, text_engine, base, (4,), source_bias=3)
            assert [one for one in held if report.HELD not in one.method] == list(rows.values())
            full_held, composed_held, joint_held = (one for one in held if report.HELD in one.method)
            assert composed_held.retention[0] == pytest.approx((5 + n_more) / max(full, 6 + n_more))
            assert full_held.exact_match[0] == pytest.approx((6 + n_more) / 10)
            assert composed_held.against_joint is not None
            assert composed_held.against_joint[0] == pytest.approx(-0.2)
            assert joint_held.exact_match[0] == pytest.approx((7 + n_more) / 10)


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("recall/number", ("full", None)),
        ("recall/number", ("gist", 4)),
        ("recall/uuid", ("gist+codes", 4)),
        ("perplexity/wikitext2", ("gist", 2)),
    ],
)
def test_batches_score_as_single_samples(
    name: str, cell: tuple[str, int | None], text_engine: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = suite_tasks([name])
    task = replace(task, score=lambda _sample, said: {"said": float(sum(map(ord, said)))})
    settings = EvalSettings(suites=(name,), limit=3, context=500, data={"": str(data)})
    samples = fitted_samples(text_engine, settings, task)
    assert len(samples) == 3
    together = score_samples(text_engine, settings, task, samples, cell)
    alone = []
    for sample in samples:
        shown = show(cell[0], context_of(text_engine, settings, task, sample, *cell))
        asked = ask(text_engine, task, sample, shown.pieces)
        alone.append(asked.scores or task.score(sample, asked.prediction))
    assert together == alone
    assert len({tuple(one.values()) for one in together}) > 1


def test_perplexity_is_of_all_tokens_together() -> None:
    tokens = np.array([1.0, 3.0])
    probabilities = [[0.5], [0.1, 0.2, 0.9]]
    nats = np.array([-np.log(one).sum() for one in probabilities])
    assert perplexity(nats, tokens) == pytest.approx(np.prod([p for one in probabilities for p in one]) ** (-1 / 4))


@pytest.mark.parametrize("bias", [0, 3])
def test_the_command_measures_everything_and_leaves_with_1_only_if_asked(
    bias: float, model_folders: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[str, float]] = set()

    def noted(engine: Any, settings: EvalSettings, task: Any, samples: Any, cell: Any) -> Any:
        asked.add((task.name, settings.source_bias))
        return score_samples(engine, settings, task, samples, cell)

    monkeypatch.setattr(bars, "score_samples", noted)
    model = tmp_path / "model"
    shutil.copytree(model_folders[0], model)
    config = json.loads((model / "ultragist_config.json").read_text("utf-8"))
    (model / "ultragist_config.json").write_text(json.dumps({**config, "source_bias": bias}), "utf-8")
    out = tmp_path / "made" / "bars.json"
    where = [
        "--data",
        data,
        "--corpus",
        data / "corpus",
        "--questions",
        data / "corpus_questions.jsonl",
        "--limit",
        1,
        "--output",
        out,
    ]
    options = [str(one) for one in (*where, "--model", model, "--base", model_folders[1])]
    result = CliRunner().invoke(app, ["bars", *options, "--strict", "--json"])
    assert result.exit_code == 1, result.output
    record = json.loads(out.read_text("utf-8"))
    assert json.loads(result.stdout) == record
    assert {one["task"] for one in record["countries"]} == {"corpus", "factbook"}
    held = {method + report.HELD for method in ("full", "composed", "joint")} if bias else set()
    assert (record["source_bias"], any(bar["plain"] for bar in record["bars"])) == (bias, bias > 0)
    assert {one["method"] for one in record["countries"]} == {
        *(report.BEFORE, "full", "composed", "joint", "closed"),
        *held,
    }
    assert {one["task"] for one in record["tasks"]} == {task.name for task in suite_tasks(record_suites())}
    needles = {"recall/mk_word", "recall/number", "recall/uuid", "recall/mk_uuid"}
    assert {one["task"] for one in record["tasks"] if one["method"] == report.BEFORE} == needles
    assert asked == {(name, bias) for name in record_suites()} | {(name, 0) for name in needles}
    plain = {one["task"] for one in record["tasks"] if one["method"] == "full, plain decoding"}
    assert plain == (needles if bias else set())
    assert all((one["met"] is None) == (one["bar"] is None) for one in record["bars"])
    assert str(data) not in record["command"]
    assert (record["limit"], record["seed"], record["base"]) == (1, 0, model_folders[1].name)
    assert {"date", "device", "versions", "fingerprint", "seconds"} <= record.keys()


def test_all_questions_are_asked_but_of_each_task_only_some_samples(
    model_folders: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "_SAMPLES", 1)
    where = (data / "corpus", data / "corpus_questions.jsonl")
    measured = bars.measure_bars(str(model_folders[0]), None, data, where)
    sets = report.case_sets(data, where, None)
    assert {(row.task, row.questions) for row in measured.countries} == {(name, len(one)) for name, one in sets.items()}
    assert {row.questions for row in measured.tasks} == {1}
    assert (measured.facts["limit"], measured.facts["command"].count("--limit")) == (None, 0)


def record_suites() -> list[str]:
    needles = ["recall/mk_word", "recall/number", "recall/uuid", "recall/mk_uuid"]
    return [*needles, "rag/xquad", "rag/policyqa", "perplexity/wikitext2"]


def test_missing_data_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="make_corpus"):
        bars.measure_bars("no such model", None, tmp_path, (tmp_path / "none", tmp_path / "none.jsonl"), 1)
    result = CliRunner().invoke(app, ["bars"])
    assert result.exit_code == 2
