"""Wrong input ends with one line on stderr and exit code 2; answers go to stdout, all else to stderr."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ultragist_rag import GistStore, __version__
from ultragist_rag.cli import app

pytestmark = pytest.mark.usefixtures("own_secret")

TEXTS = {
    "norway.md": "# Norway\n\n## Economy\n\nNorway sells oil and fish.\n\n## Climate\n\nWinters in Norway are long.\n",
    "chad.txt": "Chad sells cotton.\nThe capital of Chad is N'Djamena.\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).write_text(text, "utf-8")
    return tmp_path / "texts"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def model(model_folders: tuple[Path, Path]) -> Path:
    return model_folders[0]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def index(folder: Path, home: Path, model: Path, *more: object) -> Result:
    return run("index", folder, "--into", home, "--model", model, *more)


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert word in line
    assert isinstance(result.exception, SystemExit)


def test_version_is_that_of_the_package() -> None:
    assert run("--version").stdout == f"ultragist-rag {__version__}\n"


def test_index_then_ask(folder: Path, home: Path, model: Path) -> None:
    first = index(folder, home, model)
    assert first.exit_code == 0, first.output
    assert "2 files, 3 passages" in first.stdout
    assert "3 memories made" in first.stdout
    asked = run("ask", "What does Norway sell?", "--from", home, "-k", 2, "--max-tokens", 3)
    assert asked.exit_code == 0, asked.output
    for word in ("What does Norway", "norway.md", "first token", "from full", " ms"):
        assert word in asked.stdout


def test_second_run_reuses_the_memories_and_says_so(folder: Path, home: Path, model: Path) -> None:
    index(folder, home, model)
    stored = {path: path.stat().st_mtime_ns for path in home.rglob("*.gist")}
    second = index(folder, home, model)
    assert "all 3 memories were stored by an earlier run and are reused" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.gist")}.keys() == stored.keys()
    (folder / "more.txt").write_text("Peru sells copper.", "utf-8")
    third = json.loads(index(folder, home, model, "--json").stdout)
    assert (third["compressed"], third["reused"], third["passages"]) == (1, 3, 4)


def test_json_holds_what_the_store_and_the_engine_say(folder: Path, home: Path, model: Path, text_engine: Any) -> None:
    report = json.loads(index(folder, home, model, "--json", "--ratio", 2).stdout)
    store = GistStore.open(home / "gists")
    memories = [store.get(marker) for marker in store]
    assert report["ratio"] == 2
    assert report["memory_slots"] == sum(memory.slots for memory in memories)
    assert report["document_tokens"] == sum(memory.n_source_tokens for memory in memories)
    asked = run("ask", "capital of Chad?", "Norway?", "--from", home, "-k", 1, "--max-tokens", 4, "--json")
    chad, norway = json.loads(asked.stdout)
    assert (chad["sources"], norway["sources"]) == (["chad.txt"], ["norway.md"])
    text = store.source(next(each for each in store if "Chad" in store.source(each).text)).text
    prompt = "\n\nQuestion: capital of Chad?\nAnswer:"
    memory = text_engine.compress(text, ratio=2)
    assert chad["answer"] == text_engine.generate([memory, prompt], max_new_tokens=4).strip()
    assert chad["full_text_answer"] == text_engine.generate(text + prompt, max_new_tokens=4).strip()
    assert (chad["document_tokens"], chad["memory_slots"]) == (memory.n_source_tokens, memory.slots)
    assert 0 < chad["first_token_seconds"] < 60
    alone = run("ask", "capital of Chad?", "--from", home, "-k", 1, "--max-tokens", 4, "--json", "--no-compare")
    (once,) = json.loads(alone.stdout)
    assert (once["answer"], once["full_text_answer"]) == (chad["answer"], None)


def test_answers_are_held_as_asked_or_as_the_model_says(
    folder: Path, home: Path, model: Path, text_engine: Any
) -> None:
    index(folder, home, model)
    store = GistStore.open(home / "gists")
    text = store.source(next(each for each in store if "Chad" in store.source(each).text)).text
    shown, prompt = (text_engine.compress(text), text), "\n\nQuestion: capital of Chad?\nAnswer:"
    plain, held = (
        [text_engine.generate([one, prompt], max_new_tokens=9, source_bias=bias).strip() for one in shown]
        for bias in (0, 1000)
    )
    assert plain[1] != held[1]
    config = shutil.copytree(model, home / "held") / "ultragist_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "source_bias": 1000}), "utf-8")
    holding = ("--model", home / "held")
    for options, said in (
        ((), plain),
        (("--source-bias", 1000), held),
        (holding, held),
        ((*holding, "--source-bias", 0), plain),
    ):
        asked = run("ask", "capital of Chad?", "--from", home, "-k", 1, "--max-tokens", 9, "--json", *options)
        (answer,) = json.loads(asked.stdout)
        assert [answer["answer"], answer["full_text_answer"]] == said


def test_demo_indexes_and_answers(folder: Path, home: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("What does Norway sell?\n\nWhat is the capital of Chad?\n", "utf-8")
    options = (folder, "--into", home, "--model", model, "--questions", tmp_path / "questions.txt")
    shown = run("demo", *options)
    assert shown.exit_code == 0, shown.output
    assert "3 memories made" in shown.stdout
    again = json.loads(run("demo", *options, "--json").stdout)
    assert again["index"]["compressed"] == 0
    assert [answer["question"] for answer in again["answers"]] == [
        "What does Norway sell?",
        "What is the capital of Chad?",
    ]


def test_folder_that_cannot_be_indexed_is_refused(folder: Path, home: Path, model: Path, tmp_path: Path) -> None:
    refused(index(tmp_path / "nowhere", home, model), "nowhere", "does not exist")
    (folder / "blank.txt").write_text(" \n", "utf-8")
    refused(index(folder, home, model), "blank.txt", "is empty")
    (folder / "blank.txt").write_bytes(b"\x00\x01\x02")
    refused(index(folder, home, model), "blank.txt", "is binary")
    assert not home.exists()


@pytest.mark.parametrize(("ratio", "said"), [("3", "trained with 2, 4, 8"), ("0", "'0'"), ("-4", "'-4'"), ("x", "'x'")])
def test_unknown_ratio_is_refused(folder: Path, home: Path, model: Path, ratio: str, said: str) -> None:
    refused(index(folder, home, model, "--ratio", ratio), "ratio", "unknown", said)


def test_unknown_embeddings_and_models_are_refused(folder: Path, home: Path, model: Path, tmp_path: Path) -> None:
    refused(index(folder, home, model, "--embeddings", "word2vec"), "word2vec")
    refused(index(folder, home, tmp_path / "no-model"), "no-model")


def test_missing_corrupt_and_foreign_index_is_refused(
    folder: Path, home: Path, model_folders: tuple[Path, Path]
) -> None:
    refused(run("ask", "What?", "--from", home), "there is no index", str(home))
    index(folder, home, model_folders[0])
    refused(run("ask", "What?", "--from", home, "--model", model_folders[1]), "another model", "Index the folder again")
    refused(run("ask", " ", "--from", home), "question is empty")
    refused(run("ask", "What?", "-k", 0, "--from", home), "k is 0")
    (home / "index.faiss").write_bytes(b"not an index")
    refused(run("ask", "What?", "--from", home), "corrupt", "Make it again")


def test_damaged_memory_is_refused(folder: Path, home: Path, model: Path) -> None:
    index(folder, home, model)
    for path in home.rglob("*.gist"):
        path.write_bytes(path.read_bytes()[:-9])
    refused(run("ask", "What?", "--from", home))


def test_questions_that_cannot_be_read_are_refused(folder: Path, home: Path, tmp_path: Path) -> None:
    for data, said in ((None, "does not exist"), (b"\n", "holds no question"), (b"\xff\xfe", "not UTF-8")):
        path = tmp_path / "questions.txt"
        if data is not None:
            path.write_bytes(data)
        refused(run("demo", folder, "--into", home, "--questions", path), "questions.txt", said)


def test_installed_command_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "ultragist-rag", "index", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Error: folder 'nowhere' does not exist or is not a folder. Name a folder with .txt or .md files."
    ]
