"""The path of docs/training.md on a tiny stand-in: from a base on the hub to an adapter on the hub."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub
from safetensors.torch import load_file
from typer.testing import CliRunner

from ultragist_rag import UltraGist
from ultragist_rag.cli import app
from ultragist_rag.testing import tiny_model
from ultragist_rag.training.loop import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
PLACES = ("Arn", "Bel", "Cor", "Dun", "Elm", "Fay")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def write_data(folder: Path) -> None:
    rng = random.Random(0)
    folder.mkdir()
    pages = {name: f"The tower of {name} is {rng.randrange(100, 999)} feet high." for name in PLACES}
    texts = [{"text": " ".join(rng.choices(list(pages.values()), k=8))} for _ in range(6)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in texts), encoding="utf-8")
    lines = []
    for one, other in itertools.pairwise(PLACES):
        asked = [[f"How high is {name}?", pages[name].split()[5]] for name in (one, other)]
        lines.append({"documents": [pages[one], pages[other]], "pairs": asked})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def tiny_config(tmp_path: Path, output: str) -> Path:
    """The config that comes for a real base, made small."""
    settings: dict[str, Any] = yaml.safe_load((CONFIGS / "qwen3-4b.yaml").read_text("utf-8"))
    settings |= {"base": "me/tiny", "output": str(tmp_path / output), "data": str(tmp_path / "data"), "workers": 0}
    settings |= {"dtype": "float32", "mixed_precision": "no", "longest": 600, "checkpoint_every": 2, "warmup": 1}
    settings["source_bias"] = 4
    settings["gist"] |= {"window": 32, "rank": 2}
    texts, questions = settings["stages"]
    texts |= {"steps": 2, "tokens": 300, "max_chars": 200}
    questions |= {"steps": 3, "tokens": 300, "windows": [16, 32], "max_chars": 200}
    path = tmp_path / f"{output}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def answers(gist: UltraGist) -> list[str]:
    memories = gist.compress(["The tower of Arn is 123 feet high.", "The tower of Bel is 456 feet high."], ratio=2)
    settings = {"max_new_tokens": 12, "do_sample": False}
    return [gist.generate([memory, "\n\nQuestion: How high is Arn?\nAnswer:"], **settings) for memory in memories]


# Five steps make no good model, and the calibration says so.
@pytest.mark.filterwarnings("ignore:the calibration of this model says")
def test_from_a_hub_base_to_a_published_adapter(
    text_engine: UltraGist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, hub = text_engine.tokenizer, FakeHub(tmp_path / "cache", monkeypatch)
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    hub.keep("me/tiny", tmp_path / "base")
    write_data(tmp_path / "data")
    config, unbroken = tiny_config(tmp_path, "run"), tiny_config(tmp_path, "unbroken")

    worked_out = json.loads(run("train", "--config", config, "--dry-run", "--tflops", 1, "--json"))
    measured = json.loads(run("train", "--config", config, "--dry-run", "--json"))
    assert worked_out["n_trained"] == measured["n_trained"] > 0

    step = Trainer._step
    with monkeypatch.context() as interrupted:

        def interrupt(self: Trainer, objective: Any, optimizers: Any, number: int, batches: Any) -> Any:
            if number == 3:
                raise KeyboardInterrupt
            return step(self, objective, optimizers, number, batches)

        interrupted.setattr(Trainer, "_step", interrupt)
        run("train", "--config", config, code=130)
    model = Path(run("train", "--config", config).strip())
    other = Path(run("train", "--config", unbroken).strip())
    assert metrics(model.parent) == metrics(other.parent)
    assert [line["step"] for line in metrics(model.parent)] == list(range(5))
    ours, theirs = (load_file(folder / "ultragist_adapter.safetensors") for folder in (model, other))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert worked_out["n_trained"] == sum(value.numel() for value in ours.values())

    ratios = ["--ratios", "2,4"]
    evaluation = [
        "--suite",
        "chat/own",
        "--methods",
        "gist",
        "--limit",
        1,
        "--context",
        600,
        "--output",
        tmp_path / "eval",
    ]
    cells = json.loads(run("eval", "--model", model, *ratios, *evaluation, "--json"))
    assert {(cell["method"], cell["ratio"]) for cell in cells} == {("full", None), ("gist", 2), ("gist", 4)}
    case = {"question": "How high is Arn?", "answers": ["123"], "documents": ["Arn is 123 feet high.", "Bel is low."]}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    run("calibrate", "--model", model, *ratios, "--cases", tmp_path / "cases.jsonl", "--json")

    trained = UltraGist.from_pretrained(model)
    assert trained.calibration is not None
    assert trained.push_to_hub("me/tiny-gists", adapter_only=True) == "https://huggingface.co/me/tiny-gists"
    fetched = UltraGist.from_pretrained("me/tiny-gists")
    assert answers(fetched) == answers(trained)
    assert fetched.fingerprint == trained.fingerprint
    assert fetched.calibration == trained.calibration
    assert fetched.source_bias == trained.source_bias == 4
