"""lm-eval's requests by our model class: what lm-eval's own class gives, and what memories give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.harness import UltraGistLM, register
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.testing import tiny_engine

SHORT = [
    ("Paris lies in", " France"),
    ("Paris lies in ", "Spain"),
    ("", "no context"),
    ("One two", " three four five"),
]
LONG = "".join(f"Line {number} of a text that fills some windows.\n" for number in range(12))


def ask(kind: str, *args: Any) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in args]


@pytest.fixture(scope="module")
def stock(text_engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """lm-eval's own model class on the same weights, loaded without this package."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("stock")
    text_engine.model.save_pretrained(folder)
    text_engine.tokenizer.save_pretrained(folder)
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def lm(engine: Any, method: str = "gist", **settings: Any) -> UltraGistLM:
    return UltraGistLM(engine, method=method, **settings)


def close(got: list[tuple[float, bool]], right: list[tuple[float, bool]]) -> None:
    assert [one for one, _ in got] == pytest.approx([one for one, _ in right], abs=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in right]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("method", ["full", "gist"])
def test_contexts_shorter_than_a_window_are_read_as_the_plain_model_reads_them(text_engine, stock, method, batch_size):
    requests = ask("loglikelihood", *SHORT)
    model = lm(text_engine, method, batch_size=batch_size)
    close(model.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))


def test_method_full_scores_long_contexts_as_the_plain_model_does(text_engine, stock):
    requests = ask("loglikelihood", (LONG, " a"), (LONG, " Line"))
    close(lm(text_engine, "full").loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, True))


def test_a_likeliest_continuation_is_called_greedy(text_engine):
    ids = torch.tensor(text_engine.tokenizer("Paris lies in")["input_ids"])
    likeliest = text_engine.model(ids[None]).logits[0, -1].argmax()
    (row,) = lm(text_engine)._loglikelihood_tokens([(("a", "b"), ids.tolist(), [int(likeliest)])], disable_tqdm=True)
    assert row[1]


@pytest.mark.parametrize("method", ["full", "gist"])
def test_answers_to_short_contexts_are_those_of_the_plain_model(text_engine, stock, method, monkeypatch):
    monkeypatch.setattr(text_engine, "source_bias", 1000.0)  # which other models have none of
    settings = [{"until": until, "max_gen_toks": 12, "do_sample": False} for until in (["\n\n"], [], "a")]
    requests = ask(
        "generate_until",
        *(("0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ", one) for one in settings),
    )
    right = stock.generate_until(requests, disable_tqdm=True)
    assert lm(text_engine, method, batch_size=2).generate_until(requests, disable_tqdm=True) == right


def test_too_long_contexts_are_cut_on_the_left_as_the_plain_model_cuts_them(text_engine, stock, monkeypatch):
    monkeypatch.setattr(stock, "_max_length", 80)
    requests = ask("loglikelihood", (LONG, " Line"))
    model = lm(text_engine, "full", max_length=80)
    close(model.loglikelihood(requests, disable_tqdm=True), stock.loglikelihood(requests, disable_tqdm=True))
    assert model.sizes[LONG] == (75, 75)  # of 80 positions, five are for the continuation but its last token


@pytest.mark.parametrize("keep", [1, 100])
def test_longer_contexts_are_scored_behind_the_memory_of_their_full_windows(text_engine, keep):
    model = lm(text_engine, ratio=4, keep=keep)
    ((score, _),) = model.loglikelihood(ask("loglikelihood", (LONG, " Line")), disable_tqdm=True)
    ids = torch.tensor(text_engine.tokenizer(LONG + " Line")["input_ids"])
    n_context = len(text_engine.tokenizer(LONG.rstrip())["input_ids"])
    n_condensed = (n_context - keep) // 64 * 64
    memory = text_engine.compress(ids[None, :n_condensed], ratio=4, joint=True, tail="raw")
    assert (memory.n_raw_tail, memory.n_gists) == (0, n_condensed // 4)
    (logits,) = prompt_forward(text_engine.attachment, [[memory, ids[n_condensed:-1]]]).logits
    of_each = logits.detach().log_softmax(-1).gather(1, ids[n_condensed + 1 :, None])
    assert score == pytest.approx(float(of_each[n_context - n_condensed - 1 :].sum()), abs=1e-4)
    assert model.sizes[LONG] == (memory.slots + n_context - n_condensed, n_context)


def test_ratios_and_methods_give_different_scores_to_long_contexts(text_engine):
    request = ask("loglikelihood", (LONG, " Line"))
    models = [
        lm(text_engine, "full"),
        lm(text_engine, ratio=2),
        lm(text_engine, ratio=8),
        lm(text_engine, ratio=8, keep=200),
    ]
    scores = [model.loglikelihood(request, disable_tqdm=True)[0][0] for model in models]
    assert len({round(score, 3) for score in scores}) == 4


def test_long_contexts_are_answered_from_the_memory(text_engine):
    model = lm(text_engine, ratio=4)
    (text,) = model.generate_until(ask("generate_until", (LONG, {"until": [], "max_gen_toks": 8})), disable_tqdm=True)
    ids = torch.tensor(text_engine.tokenizer(LONG)["input_ids"])[None]
    memory = text_engine.compress(ids[:, :-1], ratio=4, joint=True, tail="raw")
    assert text == text_engine.generate([memory, ids[:, -1:]], max_new_tokens=8)


def test_answers_stop_at_stop_texts_and_special_tokens(text_engine):
    model, context = lm(text_engine), "Paris lies in"
    plain = {"max_gen_toks": 12, "do_sample": False}
    ((said,), (_, again)) = (
        model.generate_until(ask("generate_until", *((context, one) for one in several)), disable_tqdm=True)
        for several in ([{**plain, "until": []}], [plain, {**plain, "until": ["<|unk|>"]}])
    )
    assert again == said
    assert len(said) > 3
    stop = said[3]
    (short,) = model.generate_until(ask("generate_until", (context, {**plain, "until": [stop]})), disable_tqdm=True)
    assert short == said[: said.index(stop)]
    ends = model._decoding({"until": ["<|unk|>", "."]}, 0)
    assert (ends.stop, ends.stock["eos_token_id"]) == ((".",), [2, 3])


def test_drawn_answers_differ_by_repetition_and_come_again_in_another_run(text_engine):
    request = (
        ask("generate_until", ("Paris", {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0})) * 2
    )
    first, second = (lm(text_engine).generate_until(request, disable_tqdm=True) for _ in range(2))
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize("n_characters", [10, 300])
def test_rolling_scores_of_method_full_are_those_of_the_plain_model(text_engine, stock, monkeypatch, n_characters):
    monkeypatch.setattr(stock, "_max_length", 120)
    request = ask("loglikelihood_rolling", (LONG[:n_characters],))
    got = lm(text_engine, "full", max_length=120).loglikelihood_rolling(request, disable_tqdm=True)
    assert got == pytest.approx(stock.loglikelihood_rolling(request, disable_tqdm=True), abs=1e-3)


@torch.no_grad()
def test_rolling_scores_of_method_gist_equal_a_slow_loop_over_tokens(text_engine, stock):
    short, long = ask("loglikelihood_rolling", (LONG[:50],), (LONG[:150],))
    got = lm(text_engine, ratio=4).loglikelihood_rolling([short, long], disable_tqdm=True)
    assert got[0] == pytest.approx(stock.loglikelihood_rolling([short], disable_tqdm=True)[0], abs=1e-4)
    ids = torch.tensor([1, *text_engine.tokenizer(LONG[:150])["input_ids"]])
    memories = {
        start: [text_engine.compress(ids[None, :start], ratio=4, joint=True, tail="raw")] for start in (64, 128)
    }
    total = 0.0
    for place in range(1, len(ids)):
        start = (place - 1) // 64 * 64  # the window that the token before is in
        pieces = [*memories.get(start, []), ids[start:place]]
        (logits,) = prompt_forward(text_engine.attachment, [pieces], wanted="last").logits
        total += float(logits[0].log_softmax(-1)[ids[place]])
    assert got[1] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "joint"}, "method is 'joint'"),
        ({"ratio": 0}, "ratio is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"max_length": True}, "max_length is True"),
    ],
)
def test_settings_out_of_range_are_refused(text_engine, settings, message):
    with pytest.raises(InputError, match=message):
        UltraGistLM(text_engine, **settings)


def test_a_model_without_tokenizer_and_a_continuation_without_tokens_are_refused(text_engine):
    with pytest.raises(InputError, match="no tokenizer"):
        UltraGistLM(tiny_engine())
    with pytest.raises(InputError, match="no token of its own"):
        lm(text_engine).loglikelihood(ask("loglikelihood", ("a", "")), disable_tqdm=True)


def test_lm_eval_makes_the_model_from_its_own_argument_string(model_folders):
    register()
    register()
    given = f"pretrained={model_folders[0]},method=gist,ratio=8,max_length=512"
    model = get_model("ultragist").create_from_arg_string(
        given, {"batch_size": 2, "max_batch_size": 4, "device": "cpu"}
    )
    assert (model.ratio, model.batch_size, model.max_length, model.method) == (8, 2, 512, "gist")
    assert model.get_model_info()["window"] == 64


def test_importing_the_package_imports_no_lm_eval():
    code = "import sys, ultragist_rag, ultragist_rag.evaluation.weak; sys.exit('lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
