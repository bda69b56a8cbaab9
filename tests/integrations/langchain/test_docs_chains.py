"""The programs of docs/langchain.md about chains, agents and other models run as they stand, in this order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage


def test_programs_about_chains_run(
    tmp_path: Path, own_secret: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[3] / "docs/langchain.md").read_text("utf-8")
    sections = page.split("\n## Compress what a retriever finds\n")[1]
    programs = re.findall(r"^```python\n(.*?)^```", sections, re.MULTILINE | re.DOTALL)
    assert len(programs) == 4
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile("\n".join(programs), "docs/langchain.md", "exec"), names)
    assert "Nairobi" in capsys.readouterr().out
    thread = {"configurable": {"thread_id": "1"}}
    for question in ("What is the capital of Kenya?", "And its currency?"):
        state = names["agent"].invoke({"messages": [HumanMessage(question)]}, thread)
    assert len(state["messages"]) == 4
    away = names["chat"].model_copy(update={"timeout": 1e-9})  # fails, so that the other one is asked
    names["chat"] = away
    robust = names["robust"](FakeListChatModel(responses=["from elsewhere"]))
    assert robust.invoke(names["context"].invoke("Kenya?")).text == "from elsewhere"
