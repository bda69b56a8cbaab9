"""Loss by position and the reconstruction probe say what they are said to, and leave the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ultragist_rag.errors import ContextOverflowError, InputError
from ultragist_rag.evaluation.failures import measure
from ultragist_rag.evaluation.failures.measure import invented_texts, measure_position, measure_probe
from ultragist_rag.evaluation.failures.position import position_perplexity, token_losses
from ultragist_rag.evaluation.failures.probe import _condense, _cut, _repeat, probe
from ultragist_rag.evaluation.failures.probe_block import BlockProbe, _owners
from ultragist_rag.memory.pieces import with_lead
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.memory.segments import table_of
from ultragist_rag.memory.text import TextCodec

RATIOS = (2, 4)


@pytest.fixture(scope="module")
def texts(text_engine: Any) -> list[str]:
    return invented_texts(text_engine, 3, 4 * 64 + 1, seed=0)


# --- position -----------------------------------------------------------------------------------------------------


def test_losses_of_full_text_are_those_of_the_stock_model(text_engine: Any, texts: list[str]) -> None:
    ids = TextCodec.of(text_engine.tokenizer).encode(texts[0])[:129]
    with torch.no_grad():
        logits = text_engine.model(torch.cat(with_lead([ids], text_engine.lead_token))[None]).logits[0, 1:-1]
    stock = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").view(2, 64)
    torch.testing.assert_close(token_losses(text_engine, ids, None), stock, atol=1e-4, rtol=1e-4)


def test_the_first_window_is_read_alike_and_the_others_from_gists(text_engine: Any, texts: list[str]) -> None:
    ids = TextCodec.of(text_engine.tokenizer).encode(texts[0])[:193]
    full, gist = token_losses(text_engine, ids, None), token_losses(text_engine, ids, 4)
    torch.testing.assert_close(full[0], gist[0])
    assert (full[1:] - gist[1:]).abs().max() > 1e-2
    lead = torch.tensor([text_engine.lead_token])
    memory = text_engine.compress(ids[None, :128], ratio=4)
    prompt = [memory, ids[128:192]]
    with torch.no_grad():
        (logits,) = prompt_forward(text_engine.attachment, [[lead, *prompt]]).logits
    alone = torch.nn.functional.cross_entropy(logits[1:], ids[129:193], reduction="none")
    torch.testing.assert_close(gist[2], alone, atol=1e-4, rtol=1e-4)


def test_bins_average_the_windows_behind_the_first(text_engine: Any, texts: list[str]) -> None:
    rows = position_perplexity(text_engine, texts[:2], RATIOS, bins=4)
    assert rows == position_perplexity(text_engine, texts[:2], RATIOS, bins=4)
    assert len(rows) == 2 * 3 * 4 == len({(row["id"], row["method"], row["ratio"]) for row in rows})
    ids = TextCodec.of(text_engine.tokenizer).encode(texts[1])[: 4 * 64 + 1]
    losses = token_losses(text_engine, ids, 4)[1:].double()
    mine = [row["scores"] for row in rows if row["id"].startswith("text 001") and row["ratio"] == 4]
    assert [one["nll"] for one in mine] == pytest.approx(
        [float(losses[:, at : at + 16].mean()) for at in range(0, 64, 16)]
    )
    assert {one["tokens"] for one in mine} == {3 * 16}


def test_what_is_too_short_for_a_boundary_is_refused(text_engine: Any) -> None:
    with pytest.raises(InputError, match="text 0 has 4 tokens"):
        position_perplexity(text_engine, ["four"], RATIOS)
    with pytest.raises(InputError, match="must be a multiple of 64"):
        token_losses(text_engine, torch.arange(64), 4)


# --- probe --------------------------------------------------------------------------------------------------------


def test_every_token_is_asked_from_the_gist_that_covers_it(text_engine: Any) -> None:
    memory = text_engine.compress(torch.arange(10, 74)[None], ratio=5)
    owner, place = _owners(memory, 64)
    table = table_of(memory.segments)
    for token in range(64):
        gist = int(owner[token])
        assert table.start[gist] <= token < table.stop[gist]
        assert token - table.start[gist] == place[token]


def test_the_probe_is_seeded_leaves_the_model_alone_and_measures_held_out_texts(
    text_engine: Any, texts: list[str]
) -> None:
    before = text_engine.fingerprint
    state = torch.get_rng_state()
    rows = probe(text_engine, texts, 4, steps=3)
    assert rows == probe(text_engine, texts, 4, steps=3)
    assert text_engine.fingerprint == before
    assert torch.equal(state, torch.get_rng_state())
    assert not any(value.grad is not None for value in text_engine.model.parameters())
    assert [row["id"] for row in rows] == [f"{kind} text {text:03}" for kind in ("weak", "strong") for text in (1, 2)]
    assert all(0 <= share <= 1 for row in rows for share in row["scores"].values())


def test_a_trained_block_reads_tokens_back_from_the_right_gists_alone(text_engine: Any) -> None:
    ids = torch.randint(10, 30, (6, 64), generator=torch.Generator().manual_seed(0))
    windows = _condense(text_engine, [ids], 0, 2)
    block = BlockProbe.train(text_engine.model, ids, windows.memories, steps=120, seed=0)
    right = block.right(ids, windows.memories).double().mean()
    other = block.right(ids, [*windows.memories[1:], windows.memories[0]]).double().mean()
    assert right > 0.5 > 0.2 > other


def test_the_strong_decoder_repeats_what_stands_in_front_of_it(text_engine: Any, texts: list[str]) -> None:
    rows = _cut(text_engine, texts[:1])
    windows = _condense(text_engine, rows, 0, 4)
    right = _repeat(text_engine, windows.ids[:1], windows.memories[:1])
    codec = TextCodec.of(text_engine.tokenizer)
    prompt = [
        torch.tensor([text_engine.lead_token]),
        windows.memories[0],
        codec.encode("\n\n", first=False),
        rows[0][0],
    ]
    with torch.no_grad():
        (logits,) = prompt_forward(text_engine.attachment, [prompt]).logits
    assert torch.equal(right[0], logits[2:-1].argmax(-1) == rows[0][0])


def test_texts_that_the_probe_cannot_take_are_refused(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="there are 2 texts"):
        probe(text_engine, ["a", "b"], 4)
    with pytest.raises(InputError, match="text 0 has 1 tokens"):
        probe(text_engine, ["a", "b", "c"], 4)
    monkeypatch.setattr(text_engine.attachment, "n_positions", 82)  # condensing takes 81, repeating 83
    with pytest.raises(ContextOverflowError, match="the model has 82"):
        probe(text_engine, ["a" * 64] * 3, 4, steps=1)


@pytest.mark.slow
def test_gists_of_the_bundled_model_hold_tokens_and_fewer_at_higher_ratios() -> None:
    from ultragist_rag import UltraGist

    engine = UltraGist.from_pretrained("bundled")
    texts = invented_texts(engine, 6, 1024, seed=0)
    shares: dict[tuple[str, int], tuple[float, float]] = {}
    for ratio in (2, 16):
        for row in probe(engine, texts, ratio, steps=40):
            shares.setdefault((row["group"], ratio), (row["scores"]["accuracy"], row["scores"]["other"]))
    for decoder in ("weak", "strong"):
        assert shares[decoder, 2][0] > shares[decoder, 2][1] + 0.05
    # The strong one, which is the model itself, repeats as much at either ratio: it was never asked to repeat.
    assert shares["weak", 2][0] > shares["weak", 16][0] + 0.02


def test_both_measurements_write_lines_of_their_names(text_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_QUICK", measure._Size(1, 3, 2))
    position, read = (one(text_engine, ratios=RATIOS, limit=4) for one in (measure_position, measure_probe))
    assert {row["task"] for row in position} == {"failures/position"}
    assert {(row["method"], row["ratio"]) for row in position} == {("full", None), ("gist", 2), ("gist", 4)}
    assert {row["task"] for row in read} == {"failures/probe"}
    assert {row["ratio"] for row in read} == set(RATIOS)


def test_a_model_without_room_is_left_out_with_a_warning(
    text_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(text_engine.attachment, "n_positions", 100)
    assert measure_position(text_engine, ratios=RATIOS, limit=4) == []
    assert "less than two windows of 64" in caplog.text
