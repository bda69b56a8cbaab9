"""Answers scored under teacher forcing are right exactly where greedy decoding writes them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from ultragist_rag import UltraGist
from ultragist_rag.evaluation.answering import lay_out, read
from ultragist_rag.evaluation.forced import Method, score_rows
from ultragist_rag.evaluation.heldout import Case, corpus_cases
from ultragist_rag.modeling.lead import find_lead_token
from ultragist_rag.training.batches import Row, RowMaker
from ultragist_rag.training.samples import Sample

EXAMPLES = Path(__file__).parents[2] / "examples"
WAYS: list[tuple[Method, str, int | None]] = [
    ("full", "full", None),
    ("gist", "composed", 16),
    ("closed", "closed", None),
]


@pytest.fixture(scope="module")
def engine() -> UltraGist:
    return UltraGist.from_pretrained("bundled", calibration=False)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    found = corpus_cases(EXAMPLES / "corpus", EXAMPLES / "corpus_questions.jsonl")[:9]
    return [Case(one.question, one.answers, (one.documents[one.gold],), one.heldout, 0) for one in found]


def _rows(engine: UltraGist, cases: list[Case]) -> list[Row]:
    maker, rng = RowMaker(engine.tokenizer, engine.tokenizer.eos_token), random.Random(0)
    rows: list[Row] = []
    while len(rows) < len(cases):
        case = cases[len(rows)]
        row = maker.row(Sample(case.documents, ((case.question, case.answers[0]),)), rng)
        rows += [] if row.head else [row]
    return rows


@pytest.mark.parametrize(("method", "layout", "ratio"), WAYS)
def test_what_is_right_is_what_decoding_writes(
    engine: UltraGist, cases: list[Case], method: Method, layout: str, ratio: int | None
) -> None:
    lead = find_lead_token(engine.config.lead_token, engine.tokenizer)
    gist = None if ratio is None else (ratio, engine.config.window)
    scored = score_rows(engine.attachment, _rows(engine, cases), lead, method, gist)
    written = read(engine, lay_out(engine, cases, layout, ratio))
    assert [text for text, one in zip(written, scored, strict=True) if one.right] == [
        case.answers[0] for case, one in zip(cases, scored, strict=True) if one.right
    ]
    assert all(one.answers == 1 and one.right_tokens <= one.tokens for one in scored)


def test_right_is_what_transformers_decodes_greedily(engine: UltraGist, cases: list[Case]) -> None:
    lead = find_lead_token(engine.config.lead_token, engine.tokenizer)
    rows = _rows(engine, cases)
    decoded = []
    for row in rows:
        first = row.weights.index(1.0)
        answer = [token for token, weight in zip(row.turns, row.weights, strict=True) if weight]
        ids = torch.tensor(
            [[*([] if lead is None else [lead]), *row.documents[0], *row.separators[0], *row.turns[:first]]]
        )
        made = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=len(answer)
        )
        decoded.append(int(made[0, ids.shape[1] :].tolist() == answer))
    scored = score_rows(engine.attachment, rows, lead, "full")
    assert [one.right for one in scored] == decoded
    assert 1 in decoded


def test_a_row_has_its_counts_alone_and_several_answers_are_told_apart(engine: UltraGist, cases: list[Case]) -> None:
    rows = _rows(engine, cases)[:3]
    lead = find_lead_token(engine.config.lead_token, engine.tokenizer)
    together = score_rows(engine.attachment, rows, lead, "gist", (8, 64))
    alone = [score_rows(engine.attachment, [row], lead, "gist", (8, 64))[0] for row in rows]
    assert [(one.tokens, one.right_tokens, one.right) for one in together] == [
        (one.tokens, one.right_tokens, one.right) for one in alone
    ]
    first = rows[0]
    both = Row(first.documents, first.separators, first.turns + rows[1].turns, first.weights + rows[1].weights)
    (scored,) = score_rows(engine.attachment, [both], lead, "closed")
    assert scored.answers == 2
    assert scored.tokens == together[0].tokens + together[1].tokens
