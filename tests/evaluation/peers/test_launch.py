"""Peers are found, started, taken up again and read; where they are installed, they answer under equal budgets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ultragist_rag import UltraGist
from ultragist_rag.errors import InputError, UltraGistError
from ultragist_rag.evaluation.peers import PEERS, find_peers_python, is_peer, launch, model_folder, run_peers

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / launch.ENVIRONMENT / "bin/python"
SCRIPT = Path(launch.__file__).with_name("run.py")

ECHO = """
import json, pathlib, sys
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
output = pathlib.Path(given["--output"])
done = [json.loads(line)["id"] for line in output.read_text().splitlines()] if output.exists() else []
asked = [json.loads(line) for line in pathlib.Path(given["--samples"]).read_text("utf-8").splitlines()]
with output.open("a", encoding="utf-8") as file:
    for one in reversed(asked):
        if one["id"] not in done:
            file.write(json.dumps({**one, "prediction": one["context"], "given": given, "before": len(done)}) + "\\n")
print("echoed", file=sys.stderr)
"""
FAIL = "import sys; print('a first line', file=sys.stderr); sys.exit('no such model')"
NOTHING = "import pathlib, sys; pathlib.Path(sys.argv[sys.argv.index('--output') + 1]).touch()"


def request(number: int, **changes: Any) -> dict[str, Any]:
    fixed = {"task": "own/one", "id": str(number), "group": "", "method": PEERS[0], "ratio": 4, "budget": None}
    return {**fixed, "context": f"Lomé {number}", **changes}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a program the interpreter of the peers."""

    def make(code: str) -> Path:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\n{code}", "utf-8")
        path.chmod(0o755)
        monkeypatch.setenv(launch.PYTHON_VARIABLE, str(path))
        return path

    return make


def test_each_request_gets_its_record_in_order_and_is_asked_once(
    fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(ECHO)
    output = tmp_path / "peers.jsonl"
    first = list(run_peers(tmp_path / "model", [request(1), request(2)], output, "bfloat16"))
    assert [record["id"] for record in first] == ["1", "2"]
    assert [record["prediction"] for record in first] == ["Lomé 1", "Lomé 2"]
    assert "echoed" in capsys.readouterr().err
    given = first[0]["given"]
    assert (given["--model"], given["--dtype"]) == (str(tmp_path / "model"), "bfloat16")
    more = list(run_peers(tmp_path / "model", [request(3), request(1), request(2)], output, "bfloat16"))
    assert [(record["id"], record["before"]) for record in more] == [("3", 2), ("1", 0), ("2", 0)]
    assert len(output.read_text("utf-8").splitlines()) == 3
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["peers.jsonl"]


@pytest.mark.parametrize(
    ("code", "says"), [(FAIL, "status 1(.|\n)*a first line\nno such model"), (NOTHING, "no record")]
)
def test_a_run_that_fails_is_an_error_with_its_last_lines(fake: Any, tmp_path: Path, code: str, says: str) -> None:
    fake(code)
    with pytest.raises(UltraGistError, match=says):
        list(run_peers(tmp_path, [request(1)], tmp_path / "peers.jsonl", "float32"))


def test_what_is_no_peer_or_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(launch.PYTHON_VARIABLE, raising=False)
    with pytest.raises(InputError, match="make peers"):
        find_peers_python()
    monkeypatch.setenv(launch.PYTHON_VARIABLE, "nowhere")
    with pytest.raises(InputError, match="'nowhere', which is no file"):
        find_peers_python()
    monkeypatch.setenv(launch.PYTHON_VARIABLE, sys.executable)
    assert find_peers_python() == Path(sys.executable)
    with pytest.raises(InputError, match="'gist' is no peer"):
        list(run_peers(tmp_path, [request(1, method="gist")], tmp_path / "peers.jsonl", "float32"))
    assert is_peer("kvpress:knorm")
    assert not is_peer("gist")


def test_the_folder_of_a_checkpoint_is_that_of_its_base(model_folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert (model_folder("bundled") / "model.safetensors").is_file()
    folder = str(model_folders[0])
    assert model_folder(folder) == model_folders[0]
    settings = json.loads((model_folders[0] / "ultragist_config.json").read_text("utf-8"))
    (tmp_path / "ultragist_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": folder}))
    assert model_folder(str(tmp_path)) == model_folders[0]
    with pytest.raises(InputError, match="neither a folder"):
        model_folder("nobody/nothing")


installed = pytest.mark.skipif(not PYTHON.is_file(), reason="no environment of peers: `make peers` makes it")


def samples() -> list[dict[str, Any]]:
    """Two questions, by every peer, with room for everything and for a quarter, and one of each other kind."""
    profiles = sorted((ROOT / "examples/corpus").glob("*.md"))
    asked = []
    for number, path in enumerate(profiles[:2]):
        documents = [one.read_text("utf-8")[:700] for one in (path, profiles[-1 - number])]
        sample = {"head": "Facts.\n\n", "documents": documents, "context": "\n\n".join(documents), "lead": True}
        sample |= {"tail": "\n\nQuestion: What is the capital?\nAnswer:", "n_new": 16, "stop": ["\n"]}
        asked += [
            request(number, method=peer, kind="generate", ratio=ratio, slots=slots, **sample)
            for peer in PEERS
            for ratio, slots in ((1, 10_000), (4, 120), (16, 30))
        ]
    for peer in PEERS:
        asked.append(request(8, method=peer, kind="choose", slots=120, **sample, choices=[" Lome", " Harare"]))
        asked.append(request(9, method=peer, kind="perplexity", slots=120, **sample, choices=[" Lome is a city."]))
    return asked


@pytest.mark.slow
@installed
def test_peers_answer_under_equal_budgets_and_twice_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.PYTHON_VARIABLE, str(PYTHON))
    asked = samples()
    runs = [list(run_peers(model_folder("bundled"), asked, tmp_path / f"{n}.jsonl", "float32")) for n in range(2)]
    for record in [record for records in runs for record in records]:
        assert record.pop("seconds")["total"] > 0, record
    assert runs[0] == runs[1]
    engine = UltraGist.from_pretrained("bundled", dtype=torch.float32, device_map="cpu")
    for one, record in zip(asked, runs[0], strict=True):
        if one["slots"] >= record["tokens"]:
            pieces = [one["head"], one["context"], one["tail"]]
            text = engine.generate(pieces, max_new_tokens=16, stop=["\n"], do_sample=False)
            assert (record["prediction"], record["slots"]) == (text.strip(), record["tokens"])
        elif one["method"] == "llmlingua":  # its target is no limit
            assert 0 < record["slots"] < record["tokens"]
        else:
            assert record["slots"] == one["slots"]
        if one["kind"] == "choose":
            assert record["prediction"] in one["choices"]
        assert ("nll" in record) == (one["kind"] == "perplexity")


CHECK = """
import importlib.util, json, sys, torch
from kvpress import KVPressTextGenerationPipeline
from llmlingua import PromptCompressor
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = sys.modules["run"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
reader = run.Reader(sys.argv[2], "float32", "cpu")
pipeline = KVPressTextGenerationPipeline(model=reader.model, tokenizer=reader.tokenizer)
cached = []

class Anew(type(reader.compressor)):
    def get_ppl(self, *args, past_key_values=None, return_kv=False, **settings):
        n = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        cached.append(n)
        loss, pairs = super().get_ppl(*args, return_kv=True, **settings)
        return (loss[n:], pairs) if return_kv else loss

anew = Anew(model_name=sys.argv[2], device_map="cpu")
for request in json.load(sys.stdin):
    parts = reader.split(request, request["context"])
    ids = torch.tensor([parts.front + parts.context])
    if request["method"] == "llmlingua":
        texts = [one.compress_prompt([request["context"] * 2], target_token=request["slots"])["compressed_prompt"]
                 for one in (reader.compressor, anew)]
        assert texts[0] == texts[1], texts
        continue
    press = run.make_press(request["method"].partition(":")[2], len(parts.front) + request["slots"], ids.shape[1])
    inputs = {"context_ids": ids, "questions_ids": [torch.tensor([parts.tail])]}
    with torch.no_grad():
        text = pipeline._forward(inputs, max_new_tokens=request["n_new"], press=press)[0]
    assert text.split("\\n")[0].strip() == run.read_request(reader, request)["prediction"], request
assert any(cached)
"""


@pytest.mark.slow
@installed
def test_peers_are_what_their_libraries_make_of_them() -> None:
    """Presses: the library's own pipeline on the same ids. LLMLingua: the same without cached keys and values."""
    asked = [one for one in samples() if one["kind"] == "generate" and one["ratio"] == 4]
    command = [str(PYTHON), "-I", "-c", CHECK, str(SCRIPT), str(model_folder("bundled"))]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
