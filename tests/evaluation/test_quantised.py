"""Quantised memories are asked what the plain ones are asked, and differ in nothing but their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ultragist_rag.cli import app
from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.answering import compose, compress_documents, read
from ultragist_rag.evaluation.heldout import corpus_cases
from ultragist_rag.evaluation.metrics import exact_match
from ultragist_rag.evaluation.quantised import evaluate_quantised, measure_quantised, quantised_table
from ultragist_rag.store.quantise import as_stored

EXAMPLES = Path(__file__).parents[2] / "examples"
CORPUS = EXAMPLES / "corpus", EXAMPLES / "corpus_questions.jsonl"


def test_rows_compare_the_same_memories_in_other_bits(text_engine: Any) -> None:
    cases = corpus_cases(*CORPUS)[:3]
    plain, eight, four = measure_quantised("corpus", cases, text_engine, ["int8", "int4"])
    assert [row.dtype for row in (plain, eight, four)] == ["bfloat16", "int8", "int4"]
    assert (plain.difference, plain.changed, plain.key_error) == ((0.0, 0.0, 0.0), 0.0, 0.0)
    assert 0 < eight.key_error < four.key_error
    assert four.n_bytes < eight.n_bytes < plain.n_bytes
    memories = compress_documents(text_engine, cases, 4)
    stored = {text: as_stored(memory.to(torch.bfloat16), "int4") for text, memory in memories.items()}
    answers = read(text_engine, compose(cases, stored))
    right = [exact_match(answer, case.answers) for answer, case in zip(answers, cases, strict=True)]
    assert four.exact_match[0] == sum(right) / len(cases)
    before = read(text_engine, compose(cases, {text: one.to(torch.bfloat16) for text, one in memories.items()}))
    assert four.changed == sum(map(str.__ne__, answers, before)) / len(cases)
    assert quantised_table([plain, eight, four]).row_count == 3


def test_an_unknown_quantisation_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(InputError, match="'int3'"):
        evaluate_quantised("no such model", None, CORPUS, ["int8", "int3"])


def test_the_command_writes_rows(model_folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    arguments = ["evaluate", "--model", model_folders[0], "--corpus", CORPUS[0], "--questions", CORPUS[1]]
    arguments += ["--limit", 1, "--quantise", "int8", "--output", out, "--json"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text("utf-8"))["rows"]
    assert [(row["dtype"], row["questions"]) for row in rows] == [("bfloat16", 1), ("int8", 1)]
    assert json.loads(result.stdout) == rows
