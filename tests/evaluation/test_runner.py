"""Runs give the same lines twice, go on where they stopped, keep to the budget, and fall when memories are broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ultragist_rag import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation import methods, task
from ultragist_rag.evaluation.batched import score_samples
from ultragist_rag.evaluation.records import RECORDS, RUN
from ultragist_rag.evaluation.runner import run_eval
from ultragist_rag.evaluation.scores import qa_scores
from ultragist_rag.evaluation.settings import EvalSettings
from ultragist_rag.evaluation.task import Sample, Task, register_task, registered_tasks, suite_tasks
from ultragist_rag.memory.memory import GistMemory

BUILT_IN = [name for name, one in registered_tasks().items() if not one.files]


@pytest.fixture
def own_task(monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(task, "_OWN", {})
    own = Task(name="own/letters", load=_letters, score=lambda s, p: qa_scores(p, s.answers), metric="em", n_new=4)
    register_task(own)
    return own


def _letters(source: Any) -> Iterator[Sample]:
    for number in range(6):
        documents = tuple(f"Document {number}{letter} says {letter * 40}." for letter in "abc")
        yield Sample(id=str(number), documents=documents, tail="\nWhat?", answers=("aaaa",), gold=(1,))


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RECORDS).read_text("utf-8").splitlines()]


def _untimed(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "seconds"} for one in _records(folder)]


ALL = ("closed", "gist", "joint", "gist+codes", "truncate", "bm25")


def test_two_runs_give_the_same_lines_and_a_stopped_one_goes_on(
    text_engine: Any, own_task: Task, tmp_path: Path
) -> None:
    settings = EvalSettings(suites=("own",), ratios=(2, 8), methods=ALL, limit=4)
    first, second = (run_eval(text_engine, settings, tmp_path / name) for name in "ab")
    assert _untimed(first) == _untimed(second)
    cells = {(one["method"], one["ratio"]) for one in _records(first)}
    assert cells == {("full", None), ("closed", None), *((name, ratio) for name in ALL[1:] for ratio in (2, 8))}
    assert len(_records(first)) == 4 * len(cells)
    lines = (second / RECORDS).read_bytes()
    (second / RECORDS).write_bytes(lines[: len(lines) // 2])  # stopped within a line
    assert _untimed(run_eval(text_engine, settings, second)) == _untimed(first)


def test_answers_are_held_to_their_prompts_if_asked(text_engine: Any, own_task: Task, tmp_path: Path) -> None:
    samples = [
        Sample(id=str(number), documents=("".join(map(chr, range(128 + number, 700, 3))),), tail="\n?", answers=("a",))
        for number in range(3)  # an untrained model says bytes of such characters
    ]
    own_task = replace(
        own_task, name="own/held", load=lambda _: iter(samples), n_new=8, score=lambda _, p: {"em": sum(map(ord, p))}
    )
    register_task(own_task)
    plain = EvalSettings(suites=("own/held",), ratios=(4,), limit=3)
    held = replace(plain, source_bias=50.0)
    run_eval(text_engine, plain, tmp_path / "plain")
    assert "source_bias" not in json.loads((tmp_path / "plain" / RUN).read_text("utf-8"))["settings"]
    with pytest.raises(InputError, match=r"settings with source_bias None, not 50\.0"):
        run_eval(text_engine, held, tmp_path / "plain")
    said = {one["id"]: one["prediction"] for one in _records(run_eval(text_engine, held, tmp_path / "held"))[::2]}
    assert list(said.values()) != [one["prediction"] for one in _records(tmp_path / "plain")[::2]]
    how = {"max_new_tokens": own_task.n_new, "stop": own_task.stop, "source_bias": 50.0}
    prompts = [[*one.documents, one.tail] for one in samples]
    assert list(said.values()) == [text_engine.generate(prompt, **how).strip() for prompt in prompts]
    scored = [score_samples(text_engine, held, own_task, samples, one) for one in (("full", None), ("gist", 4))]
    assert [one for pair in zip(*scored, strict=True) for one in pair] == [
        one["scores"] for one in _records(tmp_path / "held")
    ]


def test_no_method_takes_more_slots_than_gists_do(text_engine: Any, own_task: Task, tmp_path: Path) -> None:
    settings = EvalSettings(suites=("own",), ratios=(2, 8), methods=ALL)
    records = _records(run_eval(text_engine, settings, tmp_path))
    gists = {(one["id"], one["ratio"]): one["slots"] for one in records if one["method"] == "gist"}
    for one in records:
        if one["method"] in ("truncate", "bm25", "gist+codes"):
            assert 0 < one["slots"] <= gists[one["id"], one["ratio"]]
        if one["method"] == "full":
            assert one["slots"] == one["tokens"] > 2 * gists[one["id"], 8]


def test_a_budget_is_kept_by_every_method(text_engine: Any, own_task: Task, tmp_path: Path) -> None:
    settings = EvalSettings(suites=("own",), methods=ALL, budget=30_000, limit=2)
    records = _records(run_eval(text_engine, settings, tmp_path))
    sizes = {one["method"]: one["bytes"] for one in records}
    assert sizes.keys() == {"full", *ALL}
    assert all(size <= 30_000 for name, size in sizes.items() if name != "full")
    assert sizes["full"] > 30_000 > sizes["gist"] > 15_000
    small = EvalSettings(suites=("own",), methods=("gist",), budget=100, limit=1)
    (skipped,) = [one for one in _records(run_eval(text_engine, small, tmp_path / "small")) if one["method"] == "gist"]
    assert "100 bytes" in skipped["skipped"]


def test_slots_are_counted_as_they_come(text_engine: Any) -> None:
    sample = next(_letters(None))
    context = methods.Context(engine=text_engine, sample=sample, separator="\n\n", ratio=4)
    shown = methods.show("gist", context)
    memories = [piece for piece in shown.pieces if isinstance(piece, GistMemory)]
    assert shown.slots == sum(memory.slots for memory in memories) + 2 * len("\n\n") == methods.slots_at(context)
    half = methods.show("truncate", replace(context, slots=21))
    ids = context.ids(context.text)
    assert torch.equal(torch.cat(half.pieces), torch.cat((ids[:11], ids[-10:])))  # type: ignore[arg-type]
    found = methods.show("bm25", replace(context, sample=replace(sample, tail="\nDocument 0b?"), slots=70))
    assert found.pieces == [sample.documents[1]]


@pytest.mark.parametrize("tail", ["", "\n= =\n", "\nThe?"])
def test_a_question_without_words_finds_something_all_the_same(tail: str, text_engine: Any) -> None:
    sample = replace(next(_letters(None)), tail=tail)
    context = methods.Context(engine=text_engine, sample=sample, separator="\n\n", ratio=4, slots=70)
    assert 0 < methods.show("bm25", context).slots <= 70
    with pytest.raises(InputError, match="no words"):
        methods.show("bm25", replace(context, sample=replace(sample, documents=("= =", "\n"))))


def test_what_is_wrong_with_one_line_is_its_own_affair(
    text_engine: Any, own_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_peers(_folder: Path, requests: Any, _output: Path, **_: Any) -> Iterator[dict[str, Any]]:
        for one in requests:
            asked.append(one)
            head = {name: one[name] for name in ("task", "id", "group", "method", "ratio", "budget")}
            yield {**head, "slots": one["slots"], "prediction": "aaaa", "seconds": {"total": 0.0}}

    monkeypatch.setattr("ultragist_rag.evaluation.peers.run_peers", run_peers)
    monkeypatch.setattr("ultragist_rag.evaluation.peers.find_peers_python", Path)
    monkeypatch.setattr("ultragist_rag.evaluation.peers.model_folder", Path)
    long = replace(own_task, name="own/long", load=_one_long_one, score=lambda s, p: {"em": float("nan")})
    register_task(long)
    settings = EvalSettings(suites=("own",), methods=("kvpress:knorm",), budget=30_000, limit=2)
    records = _records(run_eval(text_engine, settings, tmp_path))
    theirs = [one for one in records if one["method"] == "kvpress:knorm"]
    assert [("skipped" in one, one["task"]) for one in theirs] == [
        (True, "own/long"),
        (False, "own/letters"),
        (False, "own/letters"),
    ]
    assert [one["scores"]["em"] for one in theirs[1:]] == [1.0, 1.0]
    assert len(asked) == 2
    (full,) = [one for one in records if one["task"] == "own/long" and one["method"] == "full"]
    assert "no finite score" in full["skipped"]


def _one_long_one(source: Any) -> Iterator[Sample]:
    documents = tuple(f"{number} is short." for number in range(150))
    yield Sample(id="1", documents=documents, tail="\nWhat?", answers=("aaaa",))


def test_documents_without_the_answer_make_room_first(text_engine: Any, own_task: Task, tmp_path: Path) -> None:
    settings = EvalSettings(suites=("own",), ratios=(4,), methods=("full",), context=150)
    records = _records(run_eval(text_engine, settings, tmp_path))
    sample = next(_letters(None))
    two = len("\n\n".join(sample.documents[:2]).encode())
    assert {one["tokens"] for one in records} == {two}
    assert two < 150 < two + 2 + len(sample.documents[2])


def test_another_run_in_the_same_folder_is_refused(text_engine: Any, own_task: Task, tmp_path: Path) -> None:
    run_eval(text_engine, EvalSettings(suites=("own",), ratios=(4,), limit=1), tmp_path)
    before = (tmp_path / RECORDS).read_bytes()
    with pytest.raises(InputError, match=r"settings with ratios \[4\], not \[8\]"):
        run_eval(text_engine, EvalSettings(suites=("own",), ratios=(8,), limit=1), tmp_path)
    assert (tmp_path / RECORDS).read_bytes() == before


def test_missing_data_are_one_line_and_the_rest_goes_on(
    text_engine: Any, own_task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = replace(own_task, name="own/absent", files={"test": ("none.jsonl",)}, load=lambda source: source.records())
    register_task(absent)
    run_eval(text_engine, EvalSettings(suites=("own",), ratios=(4,), limit=1, data={"": str(tmp_path)}), tmp_path / "a")
    about = json.loads((tmp_path / "a" / RUN).read_text("utf-8"))
    assert about["left_out"] == [f"own/absent is left out: {tmp_path} holds no none.jsonl."]
    assert "own/absent is left out" in capsys.readouterr().err
    assert list(about["tasks"]) == ["own/letters"]
    with pytest.raises(InputError, match=r"nothing was measured: Without data.* left out: own/absent"):
        run_eval(text_engine, EvalSettings(suites=("own/absent",)), tmp_path / "b")


def test_a_folder_without_lines_is_free_and_empty_data_are_told(
    text_engine: Any, own_task: Task, tmp_path: Path
) -> None:
    register_task(replace(own_task, name="own/empty", load=lambda _: []))
    with pytest.raises(InputError, match="own/empty is left out: its data hold no samples"):
        run_eval(text_engine, EvalSettings(suites=("own/empty",)), tmp_path)
    run_eval(text_engine, EvalSettings(suites=("own/letters",), ratios=(4,), limit=1), tmp_path)
    assert _records(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"suites": ("raag",)}, "suite 'raag' is unknown"),
        ({"methods": ("gist", "magic")}, "method 'magic' is unknown"),
        ({"methods": ("gist+magic",)}, "magic"),
        ({"ratios": (4, 0)}, "ratios are"),
        ({"limit": 0}, "limit is 0"),
        ({"budget": -1}, "budget is -1"),
        ({"data": {"rag": "x"}}, "'rag', which is no task"),
        ({"source_bias": -1.0}, "source_bias"),
        ({"source_bias": 4.0, "methods": ("kvpress:snapkv",)}, r"source_bias is 4.0.*leave out \['kvpress:snapkv'\]"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EvalSettings(**settings)


def test_names_of_tasks_are_checked(own_task: Task) -> None:
    with pytest.raises(InputError, match="already"):
        register_task(own_task)
    with pytest.raises(InputError, match="suite/name"):
        register_task(replace(own_task, name="letters"))
    assert suite_tasks(["own", "own/letters"]) == [own_task]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_task_runs_by_every_method(name: str, text_engine: Any, tmp_path: Path) -> None:
    settings = EvalSettings(suites=(name,), ratios=(4,), methods=ALL, limit=1, context=700)
    records = [one for one in _records(run_eval(text_engine, settings, tmp_path)) if one["task"] == name]
    assert [one["method"] for one in records] == ["full", *ALL]
    metric = registered_tasks()[name].metric
    for one in records:
        assert "skipped" not in one, one
        assert ("nll" if metric == "ppl" else metric) in one["scores"]


def _turned(keys: torch.Tensor) -> torch.Tensor:
    half = keys.shape[-1] // 2
    return torch.cat((-keys[..., half:], keys[..., :half]), -1)


def _broken(memory: GistMemory, how: str) -> GistMemory:
    """Damage a memory: keys rotated by a quarter, values under other keys, or the second half lost."""
    if how == "rotated":
        return replace(memory, keys=tuple(map(_turned, memory.keys)))
    if how == "shuffled":
        order = torch.randperm(memory.slots, generator=torch.Generator().manual_seed(0))
        return replace(memory, values=tuple(values[:, :, order] for values in memory.values))
    n = -(-memory.slots // 2)
    (segment,) = memory.segments
    keys, values = (tuple(one[:, :, :n] for one in tensors) for tensors in (memory.keys, memory.values))
    return replace(memory, keys=keys, values=values, segments=(replace(segment, stop=n),), progress=None)


@pytest.mark.slow
def test_broken_memories_make_suites_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = UltraGist.from_pretrained("bundled")
    plain = methods._METHODS["gist"]
    for how in ("rotated", "shuffled", "dropped"):

        def damaged(context: methods.Context, how: str = how) -> methods.Shown:
            pieces = plain(context).pieces
            return methods.Shown([_broken(p, how) if isinstance(p, GistMemory) else p for p in pieces], 0)

        monkeypatch.setitem(methods._METHODS, how, damaged)
    names = ("gist", "rotated", "shuffled", "dropped")
    settings = EvalSettings(suites=("rag/invented",), ratios=(4,), methods=names, limit=40)
    scores: dict[str, list[float]] = {}
    for one in _records(run_eval(engine, settings, tmp_path)):
        scores.setdefault(one["method"], []).append(one["scores"]["subem"])
    mean = {name: sum(values) / len(values) for name, values in scores.items()}
    assert mean["gist"] > 0.3
    assert mean["rotated"] < mean["gist"] / 4
    assert mean["shuffled"] < mean["gist"] / 4
    assert mean["dropped"] < mean["gist"] * 0.8
