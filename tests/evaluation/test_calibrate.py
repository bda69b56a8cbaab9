"""Composed memories, joint ones and plain text are asked the same, and held against each other rightly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ultragist_rag import GistMemory, UltraGist
from ultragist_rag.cli import app
from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.evaluation import calibrate as measuring
from ultragist_rag.evaluation.answering import lay_out
from ultragist_rag.evaluation.calibrate import (
    calibrate,
    calibration_table,
    divergence,
    invented_cases,
    next_tokens,
    read_cases,
)
from ultragist_rag.evaluation.heldout import Case
from ultragist_rag.memory.generate import Answer
from ultragist_rag.memory.pieces import to_prompt
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.modeling.calibration import CALIBRATION_FILE, Calibration, Thresholds

CASES = [
    Case("Where is Oslo?", ("by the sea",), ("Oslo lies by the sea.", "Bergen has much rain."), False, 0),
    Case("What has Bergen?", ("rain",), ("Bergen has much rain, all the year.", "Oslo is dry."), False, 0),
    Case("Who is there?", ("nobody",), ("Nobody is there.", "Somebody is here, at the end of the fjord."), False, 0),
]


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "_DECODING", replace(measuring._DECODING, max_new_tokens=5))
        yield


@pytest.fixture(scope="module")
def measured(text_engine: Any) -> Calibration:
    return calibrate(text_engine, CASES, [8, 2], command="by hand")


def stepwise(engine: Any, prompt: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities token by token, each with a forward of the plain model behind a filled cache."""
    *pieces, last = to_prompt(engine, prompt)
    state = prompt_forward(engine.attachment, [[*pieces, last[:-1]]], wanted="none")
    rows, (position,) = [], state.lengths
    for number, token in enumerate([last[-1], *ids]):
        out = engine.model(
            input_ids=token.reshape(1, 1),
            position_ids=torch.tensor([[position + number]]),
            past_key_values=state.cache,
            use_cache=True,
        )
        rows.append(out.logits[0, -1].double().log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["composed", "joint"])
@torch.no_grad()
def test_divergence_equals_a_slow_reference(text_engine: Any, method: str) -> None:
    ids = [torch.tensor([70, 71, 72, 2]), torch.tensor([], dtype=torch.long), torch.tensor([90])]
    plain, memories = (lay_out(text_engine, CASES, name, 4) for name in ("full", method))
    quick = [next_tokens(text_engine, prompts, ids) for prompts in (plain, memories)]
    for place, (text, prompt, row) in enumerate(zip(plain, memories, ids, strict=True)):
        (of_text,) = to_prompt(text_engine, text)[1:]
        whole = torch.cat((torch.tensor([text_engine.lead_token]), of_text, row))[None]
        reference = text_engine.model(whole).logits[0, -len(row) - 1 :].double().log_softmax(-1)
        torch.testing.assert_close(quick[0][place], reference, rtol=1e-5, atol=1e-5)
        slow = stepwise(text_engine, prompt, row)
        torch.testing.assert_close(quick[1][place], slow, rtol=1e-5, atol=1e-5)
        by_hand = torch.nn.functional.kl_div(slow, reference, reduction="none", log_target=True).sum(-1).mean()
        assert divergence(quick[0][place], quick[1][place]) == pytest.approx(float(by_hand), rel=1e-4)
        assert divergence(quick[0][place], quick[1][place]) > 1e-3


def test_what_is_identical_diverges_by_nothing(text_engine: Any, measured: Calibration) -> None:
    assert measured.row("plain").kl == (0.0, 0.0, 0.0)
    assert measured.row("plain").agreement == (1.0, 1.0, 1.0)
    ids = [torch.tensor([70, 71])] * 3
    prompts = lay_out(text_engine, CASES, "full", None)
    alone = [next_tokens(text_engine, [prompt], ids[:1])[0] for prompt in prompts]
    together = next_tokens(text_engine, prompts, ids)
    assert max(divergence(one, other) for one, other in zip(alone, together, strict=True)) < 1e-6


def test_every_way_is_measured_and_equal_inputs_give_equal_figures(
    text_engine: Any, measured: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = [(one.method, one.ratio) for one in measured.figures]
    assert ways[:2] == [("plain", None), ("closed", None)]
    assert ways[2:] == [("joint", 2), ("composed", 2), ("joint", 8), ("composed", 8)]
    for one in measured.figures:
        for value, low, high in (one.exact_match, one.agreement, one.kl):
            assert 0 <= low <= value <= high
        assert (one.joint_kl is not None) == (one.method == "composed")
    assert measured.row("composed", 8).kl[0] > 0
    monkeypatch.setattr(text_engine, "source_bias", 1000.0)  # answers are decoded plainly all the same
    assert calibrate(text_engine, CASES, [8, 2], command="by hand") == measured
    assert measured.mismatch(text_engine) is None
    assert calibration_table(measured).row_count == 6


def test_without_ratios_those_of_the_model_are_measured(text_engine: Any) -> None:
    assert calibrate(text_engine, CASES[:1]).ratios == text_engine.config.choices == (2, 4, 8)


def test_agreement_counts_equal_answers(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([["by the sea", "sun", "nobody"], ["", "", ""], ["By the sea.", "sun", "all"], ["a", "sun", "the all"]])

    def answer(*_: Any) -> list[Any]:
        return [[Answer(text, torch.tensor([70]), "end", 0, 1)] for text in next(said)]

    monkeypatch.setattr(measuring, "answer", answer)
    found = calibrate(text_engine, CASES, [4])
    joint, composed = found.row("joint", 4), found.row("composed", 4)
    assert [found.row("plain").exact_match[0], joint.exact_match[0], composed.exact_match[0]] == [0.666667, 0.333333, 0]
    assert [joint.agreement[0], composed.agreement[0]] == [0.666667, 0.333333]
    assert composed.joint_agreement is not None
    assert composed.joint_agreement[0] == 0.666667


@pytest.mark.slow
def test_the_bundled_model_passes_and_broken_memories_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, cases = UltraGist.from_pretrained("bundled"), invented_cases(8)
    ratio = engine.config.ratio
    assert engine.calibration is not None
    assert engine.calibration.is_good(ratio)
    assert calibrate(engine, cases, [ratio]).is_good(ratio)
    compress, generator = engine.compress, torch.Generator().manual_seed(0)

    def shuffled(memory: GistMemory) -> GistMemory:
        order = torch.randperm(memory.slots, generator=generator)
        return replace(memory, keys=tuple(keys[:, :, order] for keys in memory.keys))

    def broken(texts: list[str], **settings: Any) -> list[GistMemory]:
        made = compress(texts, **settings)
        return made if settings.get("joint") else [shuffled(memory) for memory in made]

    monkeypatch.setattr(engine, "compress", broken)
    assert not calibrate(engine, cases, [ratio]).is_good(ratio)


def test_invented_cases_hold_their_answer_once() -> None:
    cases = invented_cases(4)
    assert cases[:2] == invented_cases(2) != invented_cases(2, seed=1)
    for case in cases:
        assert len(case.documents) == 4
        places = [place for place, text in enumerate(case.documents) if case.answers[0] in text]
        assert places == [case.gold]


def test_questions_of_ones_own_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    rows = [{"question": c.question, "answers": list(c.answers), "documents": list(c.documents)} for c in CASES[:2]]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    found = read_cases(file)
    assert [(c.question, c.answers, c.documents, c.gold) for c in found] == [
        (c.question, c.answers, c.documents, c.gold) for c in CASES[:2]
    ]
    for wrong in ("3", "{}", '{"question": "a", "answers": "b", "documents": ["b"]}', "nothing"):
        file.write_text(json.dumps(rows[0]) + "\n" + wrong, encoding="utf-8")
        with pytest.raises(InputError, match=r"line 2 of .*cases"):
            read_cases(file)
    with pytest.raises(InputError, match="nowhere"):
        read_cases(tmp_path / "nowhere")


def test_what_cannot_be_measured_is_refused(text_engine: Any) -> None:
    for cases, ratios in (([], [2]), (CASES, []), (CASES, [0, 2])):
        with pytest.raises(InputError, match="questions at the ratios"):
            calibrate(text_engine, cases, ratios)
    with pytest.raises(ContextOverflowError):
        next_tokens(text_engine, [["a" * 4000]], [torch.arange(4, 104)])


def test_the_command_writes_beside_the_weights(
    model_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folders[0], folder)
    (folder / CALIBRATION_FILE).write_text("damaged", encoding="utf-8")
    monkeypatch.setattr(measuring, "invented_cases", lambda count: CASES[:count])
    given = ["calibrate", "--model", str(folder), "--ratios", "4,2", "--questions", "2", "--kl-slack", "9"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    written = Calibration.read(folder / CALIBRATION_FILE)
    assert (written.ratios, written.questions, written.thresholds) == ((2, 4), 2, Thresholds(kl_slack=9.0))
    assert written.command.split()[:2] == ["ultragist-rag", "calibrate"]
    assert "--kl-slack 9.0" in written.command
    assert UltraGist.from_pretrained(folder).calibration == written
    again = CliRunner().invoke(app, [*given, "--output", str(tmp_path / "other.json"), "--json"])
    assert json.loads(again.stdout) == json.loads((tmp_path / "other.json").read_text("utf-8"))
    assert Calibration.read(tmp_path / "other.json").figures == written.figures


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "name a file with --output"),
        (["--output", "no such folder/file.json"], "no file in a folder"),
        (["--output", "x.json", "--ratios", "2,x"], "ratios are '2,x'"),
        (["--output", "x.json", "--kl-slack", "-1"], "kl_slack is -1.0"),
        (["--output", "x.json", "--cases", "none.jsonl"], "none.jsonl"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(more: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--model", "no such model", *more])
    assert result.exit_code == 2
    assert says in result.stderr
