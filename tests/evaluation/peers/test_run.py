"""The script of the peers' environment reads, answers and judges as stock transformers does, peers aside."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ultragist_rag import UltraGist
from ultragist_rag.evaluation.peers import run

CONTEXT, TAIL = "Lomé is the capital of Togo.\n\nOuagadougou is another.", "\n\nQuestion: of Togo?\nAnswer:"
HEAD = "Read this. "


def request(**changes: Any) -> dict[str, Any]:
    fixed = {"task": "own/capitals", "id": "1", "group": "", "method": "kvpress:knorm", "ratio": 4, "budget": None}
    asked = {"slots": 10_000, "kind": "generate", "head": HEAD, "context": CONTEXT, "tail": TAIL, "choices": []}
    return {**fixed, **asked, "n_new": 12, "stop": ["\n"], "lead": True, **changes}


@pytest.fixture(scope="module")
def reader() -> Any:
    return run.Reader(str(Path(run.__file__).parents[2] / "bundled"), "float32", "cpu")


@pytest.fixture(scope="module")
def engine() -> UltraGist:
    return UltraGist.from_pretrained("bundled", dtype=torch.float32, device_map="cpu")


@torch.no_grad()
def likelihoods(reader: Any, prompt: str, text: str) -> torch.Tensor:
    """Of each token of a text, by one forward over everything."""
    ids, wanted = reader.tokenizer(prompt)["input_ids"], reader.encode(text)
    logits = reader.model(torch.tensor([ids + wanted])).logits[0].log_softmax(-1)
    return logits[len(ids) - 1 : -1].gather(1, torch.tensor(wanted)[:, None])[:, 0].double()


@pytest.mark.parametrize("method", ["kvpress:snapkv", "llmlingua"])
def test_with_room_for_all_the_answer_is_that_of_the_full_text(reader: Any, engine: UltraGist, method: str) -> None:
    for context in (CONTEXT, CONTEXT[::-1]):
        got = run.read_request(reader, request(method=method, context=context))
        text = engine.generate([HEAD, context, TAIL], max_new_tokens=12, stop=["\n"], do_sample=False)
        assert got["prediction"] == text.strip()
        assert got["slots"] == got["tokens"] == len(reader.split(request(), context).context)
        assert 0 <= got["seconds"]["compress"] <= got["seconds"]["first_token"] <= got["seconds"]["total"]
    assert got["prediction"]


def test_cutting_a_prompt_at_its_seams_loses_no_token(reader: Any) -> None:
    for head, context, tail in ((HEAD, CONTEXT, TAIL), ("", "ab", "cd"), ("日", "本語 <|end|>", "é"), ("a", "", "b")):
        parts = run.Reader.split(reader, request(head=head, tail=tail), context)
        ids = reader.encode(head + context + tail)
        assert parts.front[0] == reader.tokenizer.bos_token_id
        assert [*parts.front[1:], *parts.context, *parts.tail] == ids
        assert reader.tokenizer.eos_token_id not in ids
        assert len(parts.context) <= len(reader.encode(context)) + 1
    assert run.Reader.split(reader, request(lead=False, head=""), CONTEXT).front == []


def test_choices_and_texts_are_judged_as_by_one_forward(reader: Any) -> None:
    choices = [" Lomé", " Ouagadougou is", " the"]
    got = run.read_request(reader, request(kind="choose", choices=choices))
    means = [float(likelihoods(reader, HEAD + CONTEXT + TAIL, choice).mean()) for choice in choices]
    assert got["prediction"] == choices[means.index(max(means))]
    best = run.read_request(reader, request(kind="choose", choices=choices[::-1]))
    assert best["prediction"] == got["prediction"]

    text = " Lomé is the capital of Togo."
    got = run.read_request(reader, request(kind="perplexity", tail="", choices=[text]))
    wanted = likelihoods(reader, HEAD + CONTEXT, text)[1:]
    assert got["n_tokens"] == len(wanted)
    assert got["nll"] == pytest.approx(-float(wanted.mean()), abs=1e-4)


def test_what_cannot_be_asked_says_why(reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail(_model: Any) -> Iterator[None]:
        raise AssertionError("too short")
        yield

    monkeypatch.setattr(run, "make_press", lambda *_given: fail)
    reasons = {
        "positions": request(n_new=100_000),
        "slots": request(slots=0),
        "too few tokens": request(kind="perplexity", choices=["a"]),
        "kvpress:snapkv failed: AssertionError: too short": request(slots=5, method="kvpress:snapkv"),
    }
    for reason, one in reasons.items():
        got = run.read_request(reader, one)
        assert reason in got["skipped"]
        assert "prediction" not in got
        assert got["id"] == "1"


def test_a_stopped_run_goes_on_where_it_stopped(
    reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, output = tmp_path / "samples.jsonl", tmp_path / "records.jsonl"
    asked = [request(id=str(number), n_new=2) for number in range(3)]
    samples.write_text("".join(json.dumps(one) + "\n" for one in asked), "utf-8")
    kept = json.dumps({**asked[1], "prediction": "kept"}) + "\n"
    output.write_text(kept + '{"task": "own/capi', "utf-8")
    monkeypatch.setattr(run, "Reader", lambda *_given: reader)
    arguments = ["run.py", "--model", "any", "--samples", str(samples), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    run.main()
    lines = output.read_text("utf-8").splitlines(keepends=True)
    assert lines[0] == kept
    assert [json.loads(line)["id"] for line in lines] == ["1", "0", "2"]
    assert "2/2 own/capitals" in capsys.readouterr().err
    run.main()
    assert output.read_text("utf-8") == "".join(lines)
