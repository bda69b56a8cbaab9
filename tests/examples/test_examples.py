"""The examples run from an empty folder, name their sources, and answer from memories.

Answers are those of the small bundled model, so a test asks for some right ones, never for all.
"""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("0*.py"))
needs_model = pytest.mark.skipif(
    not (ROOT / "ultragist_rag/bundled/model.safetensors").is_file(), reason="the bundled model is not in this checkout"
)

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, own_secret: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the example of a number in an empty folder and return what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(number: str, *arguments: str) -> str:
        (script,) = (ROOT / "examples").glob(f"{number}_*.py")
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        capsys.readouterr()
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def n_said(output: str, *answers: str) -> int:
    return sum(answer in output for answer in answers)


def test_there_are_nine() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, 10)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 60
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{path.name}" in docstring
    assert "pip install '." in docstring


@pytest.mark.slow
@needs_model
def test_ask_documents_compresses_once(run: Run, tmp_path: Path) -> None:
    first, second = run("01"), run("01")
    (n_passages, n_compressed) = map(int, re.findall(r"(\d+) passages: (\d+) compressed, 0 reused", first)[0])
    assert n_passages == n_compressed > 100
    assert f"{n_passages} passages: 0 compressed, {n_passages} reused" in second
    assert second.partition("\n")[2] == first.partition("\n")[2]
    assert n_said(first, "Ulaanbaatar", "Norwegian kroner", "15 August 1971") >= 1
    assert all(f"{name}.md" in first for name in ("mongolia", "norway", "bahrain"))
    for tokens, slots in re.findall(r"(\d+) tokens in (\d+) memory slots", first):
        assert 3 * int(slots) < int(tokens) <= 4 * int(slots)
    assert (tmp_path / "gists").is_dir()


@needs_model
def test_ask_documents_takes_a_folder_and_questions(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "examples" / "corpus" / "togo.md", tmp_path / "mine" / "my-own.md")
    output = run("01", "mine", "What is the capital of Togo?", "When did Togo become independent?")
    assert int(re.findall(r"^(\d+) passages", output)[0]) < 20
    assert output.count("from my-own.md: ") == 2
    assert n_said(output, "Lome", "27 April 1960") >= 1


@needs_model
def test_chain_names_sources_and_reads_slots(run: Run) -> None:
    output = run("02")
    assert n_said(output, "Ulaanbaatar", "Norwegian kroner") >= 1
    assert output.index("mongolia.md") < output.index("norway.md")
    counts = re.findall(r"(\d+) tokens read, (\d+) of them memory slots", output)
    assert len(counts) == 2
    assert all(0 < int(slots) < int(tokens) < int(slots) + 50 for tokens, slots in counts)


@needs_model
def test_agent_answers_from_old_turns_and_keeps_its_messages(run: Run) -> None:
    output = run("03")
    slots = [int(number) for number in re.findall(r"(\d+) of them slots of old turns", output)]
    assert slots[0] == 0 < slots[1] < slots[2] < slots[3]
    assert "8 messages, the first as it was: True" in output
    memories = re.findall(r"(\d+) tokens in (\d+) slots: User: ", output)
    assert len(memories) == 3
    assert sum(int(number) for _, number in memories) == slots[3]
    assert n_said(output, "29 December 1911\n", "natural gas\n") >= 1  # said of turns that are memories by then


@needs_model
def test_query_engine_shows_texts_of_its_sources(run: Run) -> None:
    output = run("04")
    assert n_said(output, "Ulaanbaatar\n", "Norwegian kroner\n") >= 1
    assert len(re.findall(r"^  0\.\d\d mongolia\.md: .*Mongolia", output, re.MULTILINE)) >= 2
    assert "ultragist0" not in output


@needs_model
def test_second_ingestion_takes_all_from_its_cache(run: Run, tmp_path: Path) -> None:
    for name in ("mongolia.md", "norway.md"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy(ROOT / "examples" / "corpus" / name, tmp_path / "mine")
    first, second = run("05", "mine"), run("05", "mine")
    (n_nodes,) = set(re.findall(r"^(\d+) nodes, (?=\1 compressed)", first))
    assert f"{n_nodes} nodes, 0 compressed" in second
    assert int(n_nodes) == 14
    assert "'ultragist_id': '" in first
    assert second.partition(";")[2] == first.partition(";")[2]
    assert n_said(first, "Ulaanbaatar", "Norwegian kroner") >= 1


@pytest.mark.slow
@needs_model
def test_chat_engine_remembers_turns_that_left_its_history(tmp_path: Path, own_secret: None) -> None:
    # A process of its own: LlamaIndex leaves the database of its Memory open, which would fail a later test here.
    (script,) = (ROOT / "examples").glob("06_*.py")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert [answer.count("remembered in ") for answer in output.split("\n\n")] == [0, 1, 2, 2]
    assert n_said(output, "29 December 1911\n", "natural gas\n") >= 1


@needs_model
def test_chat_goes_on_another_day_and_a_fork_forgets(run: Run, tmp_path: Path) -> None:
    first = run("07")
    assert first.startswith("The first day\n")
    ((n_turns, n_slots, n_tokens),) = re.findall(r"(\d+) turns in (\d+) memory slots and (\d+) tokens", first)
    assert int(n_turns) == 4
    assert int(n_slots) > 50
    second = run("07")
    assert f"Another day\n  {n_turns} turns in {n_slots} memory slots and {n_tokens} tokens\n" in second
    assert "  9 turns in " in second  # of the fork: one less, two more
    assert "Sessions: a journey, without Norway" in second
    told, forgot = second.split("A fork that never heard of Norway\n")
    assert n_said(told, "29 December 1911\n", "natural gas\n") >= 1  # said of notes that are memories by then
    assert told.splitlines()[-1] != forgot.splitlines()[1]
    assert "  8 turns in " in run("07")  # the fork left the session as it was
    assert (tmp_path / "chats").is_dir()


@pytest.mark.slow
@needs_model
def test_chat_goes_on_in_another_process(tmp_path: Path, own_secret: None) -> None:
    (script,) = (ROOT / "examples").glob("07_*.py")
    outputs = [
        subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert [output.splitlines()[0] for output in outputs] == ["The first day", "Another day"]
    assert n_said(outputs[1], "29 December 1911\n", "natural gas\n") >= 1


@needs_model
def test_graph_remembers_its_user_in_another_thread(run: Run) -> None:
    output = run("09")
    monday, thursday = output.split("On Thursday, in a new thread\n")
    assert "4 messages in this thread" in monday
    assert "4 messages in this thread, 8 turns in the session of the user" in thursday
    assert n_said(thursday, "29 December 1911\n", "natural gas\n") >= 1


@needs_model
@pytest.mark.redis
def test_two_tenants_share_a_redis_store(run: Run, redis_url: str) -> None:
    first, second = run("08", redis_url), run("08", redis_url)
    counts = re.findall(r"^(\w+): (\d+) compressed, (\d+) found, (\d+) of 20000000 bytes$", first, re.MULTILINE)
    assert [(name, n_compressed != "0", n_found) for name, n_compressed, n_found, _ in counts] == [
        ("acme", True, "0"),
        ("globex", True, "0"),
    ]
    for name, n_compressed, _, n_bytes in counts:
        assert f"{name}: 0 compressed, {n_compressed} found, {n_bytes} of 20000000 bytes" in second
    assert second.splitlines()[2:] == first.splitlines()[2:]
    assert n_said(first, "29 December 1911", "Norwegian kroner") >= 1
    assert "globex cannot read what acme stored, not even with its marker" in first


@pytest.mark.redis
def test_a_shared_store_without_a_secret_is_refused(run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ULTRAGIST_SECRET")
    with pytest.raises(SystemExit, match="has no secret"):
        run("08", redis_url)


@pytest.mark.parametrize(
    ("number", "missing", "extra"),
    [
        ("01", "faiss", "retrieval"),
        ("01", "sklearn", "retrieval"),
        ("02", "langchain_core", "langchain"),
        ("03", "langgraph", "langchain"),
        ("04", "llama_index", "llama-index"),
        ("05", "llama_index", "llama-index"),
        ("06", "llama_index", "llama-index"),
        ("08", "redis", "redis"),
        ("09", "langgraph", "langchain"),
    ],
)
def test_missing_extra_is_named(number: str, missing: str, extra: str) -> None:
    (script,) = (ROOT / "examples").glob(f"{number}_*.py")
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_path({str(script)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert missing in line.lower()
    assert re.search(rf"pip install 'ultragist-rag\[{extra}", line)
