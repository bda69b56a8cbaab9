"""`forward` gives what was recorded: from a slow loop, and from the authors' code where those folders are at hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ultragist_rag import UltraGist
from ultragist_rag.layout.stream import Cursor, Situation, next_step
from ultragist_rag.memory.step_rows import Rows
from ultragist_rag.modeling.checkpoint import authors_settings

OWN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden"
TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 1e-5
NO_SHARED = pytest.param(
    None, marks=pytest.mark.skip(reason="recordings of the authors' code are not at hand"), id="none"
)


def folders(root):
    found = sorted(path.parent for path in root.glob("*/golden.safetensors") if "BUGGY" not in path.parent.name)
    return [pytest.param(path, id=path.name) for path in found]


OURS, THEIRS = folders(OWN), folders(SHARED) or [NO_SHARED]


def read(folder):
    return load_file(folder / "golden.safetensors")


def close(mine, recorded, tolerance=TOLERANCE):
    assert mine.shape == recorded.shape
    torch.testing.assert_close(mine, recorded, atol=tolerance, rtol=0)


def decode(engine, memory, ids):
    logits = []
    for token in ids.flatten():
        step = engine.forward(token.view(1, 1), memory=memory)
        memory = step.memory
        logits.append(step.logits[0, -1])
    return torch.stack(logits), memory


def check_common(engine, golden, names):
    """Logits, memory, decoding, losses and gradients."""
    ids = golden["input_ids"]
    out = engine.forward(ids, labels=ids)
    close(out.logits, golden["all_logits"])
    close(out.loss.view(1), golden["eval_loss"])
    for layer in range(len(out.memory.keys)):
        close(out.memory.keys[layer], golden[f"memory.{layer}.{names[0]}"])
        close(out.memory.values[layer], golden[f"memory.{layer}.{names[1]}"])
    logits, memory = decode(engine, out.memory, golden["decode_input_ids"])
    close(logits, golden["decode_logits"])
    trained = engine.forward(ids, labels=ids, training=True)
    close(trained.loss.detach().view(1), golden["train_loss"])
    parameters = engine.gist_parameters()
    recorded = {name[5:]: value for name, value in golden.items() if name.startswith("grad.")}
    assert recorded.keys() == parameters.keys()
    found = torch.autograd.grad(trained.loss, [parameters[name] for name in recorded], allow_unused=True)
    for gradient, value in zip(found, recorded.values(), strict=True):
        gradient = torch.zeros_like(value) if gradient is None else gradient
        close(gradient, value, GRADIENT_TOLERANCE * max(float(value.abs().max()), 1e-8))
    return memory


@pytest.mark.parametrize("folder", OURS)
def test_forward_equals_the_slow_loop(folder):
    check_common(UltraGist.from_pretrained(folder), read(folder), ("keys", "values"))


@pytest.mark.parametrize("folder", THEIRS)
def test_forward_equals_the_authors_code(folder):
    golden, engine = read(folder), UltraGist.from_pretrained(folder)
    memory = check_common(engine, golden, ("key", "value"))
    ids = golden["input_ids"]
    if "decode_long_input_ids" in golden:
        logits, memory = decode(engine, memory, golden["decode_long_input_ids"])
        close(logits, golden["decode_long_logits"])
    calls = [("chunked_last_logits", (100, 137)), ("exact128_logits", ())]
    if not engine.config.sink:  # with a sink these are not imitated, see the tests of memory/forward.py
        calls += [("chunk10_last_logits", (10,))]
    for name, cuts in calls:
        if name not in golden:
            continue
        out, upto = None, 128 if name.startswith("exact") else ids.shape[1]
        for start, stop in zip((0, *cuts), (*cuts, upto), strict=True):
            out = engine.forward(ids[:, start:stop], memory=out and out.memory)
        close(out.logits[:, -golden[name].shape[1] :], golden[name])
    masked = ids.clone()
    masked[:, :200] = -100
    close(engine.forward(ids, labels=masked).loss.view(1), golden["eval_masked200_loss"])
    exact = engine.forward(ids[:, :256], labels=ids[:, :256], training=True)
    close(exact.loss.detach().view(1), golden["train256_loss"])


@pytest.mark.parametrize("folder", THEIRS)
def test_a_short_text_is_read_as_by_the_plain_model_where_gists_come_later(folder):
    golden, engine = read(folder), UltraGist.from_pretrained(folder)
    if engine.config.placement == "interleave":
        pytest.skip("interleaved gists change short texts too")
    short, more = golden["short_input_ids"], golden["short_decode_input_ids"]
    out = engine.forward(short)
    logits, _ = decode(engine, out.memory, more)
    close(torch.cat((out.logits[0], logits)), golden["plain_short45_logits"][0])
    close(engine.model(torch.cat((short, more), 1)).logits, golden["plain_short45_logits"])


@pytest.mark.parametrize("folder", THEIRS)
def test_windows_positions_and_masks_are_the_authors(folder):
    golden, meta = read(folder), json.loads((folder / "meta.json").read_text())
    values = json.loads((folder / "config.json").read_text())
    _, config = authors_settings(values)
    situation = Situation(golden["input_ids"].shape[1], config.adapt_positions or values["max_position_embeddings"])
    cursor, number = Cursor(), 0
    while cursor.tokens < situation.total:
        step, cursor = next_step(config, cursor, situation)
        n_past = len(step.past)
        past = torch.arange(n_past) if step.past_positions is None else torch.from_numpy(step.past_positions)
        positions = torch.cat((past, torch.from_numpy(step.positions)))
        assert positions.tolist() == golden[f"step{number}.position_ids"].flatten().tolist()
        mask = Rows.packed([step], 0, n_past).mask(0, torch.device("cpu"))[0, 0]
        assert torch.equal(mask, golden[f"step{number}.mask"].bool())
        gists = golden[f"step{number}.input_ids"].flatten() == values["vocab_size"]
        assert step.is_gist.tolist() == gists.tolist()
        number += 1
    assert number == len(meta["steps"])
