"""Names become tasks and extras; lines of lm-eval have names of their own and only metrics that can be shared out."""

from __future__ import annotations

from typing import Any

import pytest

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import weak
from ultragist_rag.evaluation.extras import Wanted, resolve
from ultragist_rag.evaluation.task import registered_tasks

WANTED = Wanted(ratios=(4,), limit=1, seed=0, data=None)


def test_all_is_everything_and_each_once() -> None:
    tasks, extras = resolve(["all", "rag", "failures/probe"])
    assert [one.name for one in tasks] == list(registered_tasks())
    names = [one.name for one in extras]
    assert sorted(set(names)) == sorted(names)
    assert {"weak/everyday", "failures/position", "failures/probe"} <= set(names)
    assert [one.name for one in resolve(["failures/position"])[1]] == ["failures/position"]
    with pytest.raises(InputError, match="'lm_eval/x' is unknown"):
        resolve(["lm_eval/x"])


def test_tasks_of_a_group_keep_their_samples_apart(monkeypatch: pytest.MonkeyPatch, text_engine: Any) -> None:
    asked: dict[str, Any] = {}

    def run(_engine: Any, tasks: list[str], **settings: Any) -> list[dict[str, Any]]:
        asked.update(settings, tasks=tasks)
        rows = [("physics", {"acc": 1.0, "perplexity": 9.0}), ("law", {"perplexity": 9.0})]
        common = {"id": "0", "group": "", "method": "full", "ratio": None, "less_is_better": ["perplexity"]}
        return [{**common, "task": f"lm-eval/{name}", "scores": scores} for name, scores in rows]

    monkeypatch.setattr(weak, "run_lm_eval", run)
    (extra,) = resolve(["lm-eval/mmlu_pro"])[1]
    physics, law = extra.rows(text_engine, WANTED)
    assert [(one["task"], one["group"], one["id"]) for one in (physics, law)] == [
        ("lm-eval/mmlu_pro", "physics", "physics/0"),
        ("lm-eval/mmlu_pro", "law", "law/0"),
    ]
    assert physics["scores"] == {"acc": 1.0}
    assert "skipped" in law
    assert (asked["tasks"], asked["num_fewshot"]) == (["mmlu_pro"], weak.HUB_TASKS["mmlu_pro"])
