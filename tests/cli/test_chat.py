"""What was answered is saved before the next line is read; wrong input changes nothing and ends no conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ultragist_rag import GistStore
from ultragist_rag.cli import app
from ultragist_rag.memory.stream import TextStream
from ultragist_rag.session import GistSession

pytestmark = pytest.mark.usefixtures("own_secret")


@pytest.fixture
def model(model_folders: tuple[Path, Path]) -> Path:
    return model_folders[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "chats"


def chat(folder: Path, model: Path, *lines: str, session: str = "s", options: tuple[object, ...] = ()) -> Result:
    command = ["chat", "--session", session, "--store", folder, "--model", model, "--max-tokens", 6, *options]
    return CliRunner().invoke(app, [str(word) for word in command], input="".join(f"{line}\n" for line in lines))


def said(engine: Any, folder: Path, name: str = "s") -> list[tuple[str, str]]:
    session = GistSession.load(engine, GistStore.open(folder), name)
    return [(turn.role, turn.content) for turn in session.turns()]


def test_answers_are_held_as_asked(text_engine: Any, folder: Path, model: Path) -> None:
    question = "0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    held, plain = (text_engine.session().ask(question, max_new_tokens=16, source_bias=bias) for bias in (1000, 0))
    assert held != plain
    chat(folder, model, question, options=("--max-tokens", 16, "--source-bias", 1000))
    assert said(text_engine, folder)[-1][1] == held


def test_session_goes_on_in_another_call(text_engine: Any, folder: Path, model: Path) -> None:
    first = chat(folder, model, "Where is Oslo?")
    assert first.exit_code == 0, first.output
    assert "0 turns so far" in first.stderr
    second = chat(folder, model, "", "And Bergen?", "/exit", "not read")
    assert "2 turns so far" in second.stderr
    live = text_engine.session()
    answers = [live.ask(question, max_new_tokens=6) for question in ("Where is Oslo?", "And Bergen?")]
    assert [first.stdout, second.stdout] == [f"{answer}\n" for answer in answers]
    assert said(text_engine, folder) == [(turn.role, turn.content) for turn in live.turns()]


def test_commands_change_the_saved_session(text_engine: Any, folder: Path, model: Path) -> None:
    chat(folder, model, "One", "Two", "Three")
    listed = chat(folder, model, "/turns", "/stats", "/help").stdout.splitlines()
    numbers = [line.split()[0] for line in listed[:6]]
    assert [line.split()[1] for line in listed[:6]] == ["user", "assistant"] * 3
    assert any(line == "turns: 6" for line in listed)
    assert any(line.startswith("/fork NAME") for line in listed)
    before = said(text_engine, folder)
    done = chat(folder, model, "/fork other", f"/forget {numbers[2]}", f"/rewind {numbers[4]}", f"/pin {numbers[0]}")
    assert done.exit_code == 0, done.output
    assert said(text_engine, folder) == [before[0], before[1], before[3]]
    assert said(text_engine, folder, "other") == before
    pinned = chat(folder, model, "/stats", session="s").stdout
    assert "pinned: 1" in pinned


def test_interrupted_answer_is_kept_as_far_as_it_was_said(
    text_engine: Any, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, pieces = TextStream.__next__, iter(range(3))

    def interrupted(stream: TextStream) -> Any:
        if next(pieces, None) is None:
            raise KeyboardInterrupt
        return step(stream)

    monkeypatch.setattr(TextStream, "__next__", interrupted)
    done = chat(folder, model, "Where is Oslo?", "/turns")
    assert done.exit_code == 0, done.output
    (_, asked), (_, answer) = said(text_engine, folder)
    assert (asked, answer) == ("Where is Oslo?", done.stdout.split("\n0 user")[0].strip())
    assert answer


@pytest.mark.parametrize("line", ["/dance", "/forget x", "/forget", "/rewind 99", "/pin 99", "/fork"])
def test_wrong_line_is_refused_and_the_chat_goes_on(folder: Path, model: Path, line: str) -> None:
    done = chat(folder, model, "One", line, "/turns")
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert len(done.stdout.splitlines()) >= 3


def test_settings_of_a_known_session_are_refused(folder: Path, model: Path) -> None:
    chat(folder, model, "One", options=("--slots", 256, "--recent", 64))
    done = chat(folder, model, "Two", options=("--slots", 512))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("Error: session 's' has begun with its own slots")


def test_namespaces_do_not_meet(folder: Path, model: Path) -> None:
    chat(folder, model, "One", options=("--namespace", "a"))
    assert "0 turns so far" in chat(folder, model, options=("--namespace", "b")).stderr
    assert "2 turns so far" in chat(folder, model, options=("--namespace", "a")).stderr
