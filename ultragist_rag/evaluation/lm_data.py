"""Data for the lm-eval tasks in lm_tasks/: from a folder, or our own; lm-eval is told to call these functions.

Is        one function for each task file: where the data are, as lm-eval's `metadata` has it, to its splits.
Flow      data -> [lm_data] -> weak, lm_tasks/*.yaml.
Paper     GSM8K, arXiv 2110.14168; BIG-Bench Hard, arXiv 2210.09261; PIQA, arXiv 1911.11641.
Change    which names of files are looked for, what becomes of a record.
Not here  prompts, answers and metrics -> the task files.
Holds     no network and no cache on the disk: records go from the file into memory.

With lm-eval's own command, the folder is given by `--metadata '{"data": "FOLDER"}'`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.data import Source

__all__ = ["LM_TASKS", "bbh", "everyday", "gsm8k", "piqa"]

LM_TASKS = Path(__file__).with_name("lm_tasks")
"""Folder of the task files."""

_GSM8K = {role: (f"gsm8k/{role}.jsonl", f"{role}.jsonl") for role in ("test", "train")}
_PIQA = {"test": ("piqa_valid.jsonl", "valid.jsonl"), "labels": ("piqa_valid-labels.lst", "valid-labels.lst")}
_BBH = {"test": tuple(f"{folder}boolean_expressions.json" for folder in ("bbh/bbh/", "bbh/", ""))}
_N_EXAMPLES = 8

Splits = Mapping[str, Any]


def gsm8k(data: str | None = None, **_: Any) -> Splits:
    """Word problems, their worked answers, and the number that each ends in.

    Args:
        data: The folder.

    Returns:
        Splits `test` and `train`.

    Raises:
        InputError: If an answer has no number.
    """
    source = Source(task="ultragist_gsm8k", files=_GSM8K, place=data)
    if data is not None and source.path("test") == source.path("train"):
        raise InputError(f"{data} is one file: give a folder with test and train, or examples would hold the answers.")
    splits: dict[str, list[dict[str, Any]]] = {}
    for role in ("test", "train"):
        splits[role] = []
        for record in source.records(role):
            mark, number = str(record["answer"]).rpartition("####")[1:]
            if not mark:
                raise InputError(
                    f"an answer in {source.path(role)} does not end in '#### number': it is no GSM8K file."
                )
            splits[role].append({**record, "number": number.strip()})
    return _splits(splits)


def piqa(data: str | None = None, **_: Any) -> Splits:
    """Goals, two ways to reach each, and which one does.

    Args:
        data: The folder; labels stand in the records, or in a file of their own as they were published.

    Returns:
        Split `test`.
    """
    source = Source(task="ultragist_piqa", files=_PIQA, place=data)
    records = list(source.records())
    if any("label" not in record for record in records):
        records = [
            {**record, "label": int(label)} for record, label in zip(records, source.lines("labels"), strict=True)
        ]
    return _splits({"test": [{**record, "ways": [record["sol1"], record["sol2"]]} for record in records]})


def bbh(data: str | None = None, **_: Any) -> Splits:
    """Questions of all tasks, one of each by turns, each with the text that stands in front of it.

    Worked examples are those published with the data, `cot-prompts/NAME.txt`. Where they are missing, the first
    questions of a task with their bare answers take their place, and are not asked.

    Args:
        data: The folder.

    Returns:
        Split `test`, with the fields `task`, `prompt`, `question` and `target`.

    Raises:
        InputError: If a file is damaged.
    """
    folder = Source(task="ultragist_bbh", files=_BBH, place=data).path().parent
    worked = next((place for place in (folder, folder.parent) if (place / "cot-prompts").is_dir()), folder)
    tasks = []
    for path in sorted(folder.glob("*.json")):
        try:
            examples = json.loads(path.read_text("utf-8"))["examples"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}. Fetch it again.") from error
        tasks.append(_bbh_task(path.stem, examples, worked / "cot-prompts" / f"{path.stem}.txt"))
    by_turns = (record for turn in zip_longest(*tasks) for record in turn if record is not None)
    return _splits({"test": by_turns})


def _bbh_task(name: str, examples: list[dict[str, str]], worked: Path) -> list[dict[str, str]]:
    ask = "Q: {input}\nA:"
    if worked.is_file():
        # A line of dashes ends a note for those who collect training data, which is no part of the prompt.
        prompt = worked.read_text("utf-8").rpartition("-----\n")[2].strip()
        ask += " Let's think step by step."
    else:
        shown, examples = examples[:_N_EXAMPLES], examples[_N_EXAMPLES:]
        prompt = "\n\n".join(f"{ask.format(**one)} {one['target']}" for one in shown)
    front = f"{prompt}\n\n"
    return [{"task": name, "prompt": front, "question": ask.format(**one), "target": one["target"]} for one in examples]


def everyday(**_: Any) -> Splits:
    """Questions of our own, with four choices each.

    Returns:
        Splits `test` and `examples`.
    """
    source = Source(task="ultragist_everyday", files={"test": ("everyday.jsonl",)}, place=LM_TASKS)
    records = list(source.records())
    return _splits({split: [one for one in records if one["split"] == split] for split in ("test", "examples")})


def _splits(splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> Splits:
    from datasets import Dataset

    return {name: Dataset.from_list([dict(record) for record in records]) for name, records in splits.items()}
