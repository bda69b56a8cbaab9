"""Chosen tokens stay beside the gists: as the slow loop says, for every cut, in a batch, within a budget."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.memory import surprisal, verbatim
from ultragist_rag.memory.compress import Verbatim, compress_ids
from ultragist_rag.memory.ingest import verbatim_tokens
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.memory.verbatim import (
    IMPROBABLE,
    Passage,
    Surprisal,
    choose,
    policy_name,
    policy_names,
    register_policy,
)
from ultragist_rag.testing import tiny_engine

sys.path.insert(0, str(Path(__file__).parents[1]))
import reference
from tokenizers_of_our_own import byte_level, sentencepiece_like

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
LEAD = 1
SETTINGS = [
    {},
    {"stride": 4},
    {"attend_previous": False, "attention": "segmentation"},
    {"placement": "interleave"},
    {"placement": "interleave", "attention": "full-coverage"},
]
TEXT = "Order A-4711 of 2024-05-01 was paid by jane@mail.example.org; the rest of it is of no use to anyone. " * 2


def ids(n, seed=0):
    return torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(seed))


def flags(n, seed=0):
    return np.random.default_rng(seed).random(n) < 0.3


def engine(**settings):
    return tiny_engine(model=SMALL, **settings)


def compress(engine, documents, kept, ratio=3, **settings):
    with torch.no_grad():
        kept = Verbatim("custom", kept)
        return compress_ids(engine.attachment, documents, ratio=ratio, verbatim=kept, **settings)


def gap(mine, other):
    assert mine.segments == other.segments
    pairs = zip((*mine.keys, *mine.values), (*other.keys, *other.values), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_batch_equals_the_slow_loop_for_each_document(settings):
    one, slow = engine(**settings), None
    documents, kept = [ids(n, seed=n) for n in (5, 19, 8)], [flags(5, 2), flags(19, 1), np.zeros(8, bool)]
    slow = reference.Reference(one.model)
    memories = compress(one, documents, kept, [2, 3, 8], lead_token=LEAD)
    for memory, document, flag, ratio in zip(memories, documents, kept, (2, 3, 8), strict=True):
        chosen = set(np.flatnonzero(flag).tolist())
        with torch.no_grad():
            slots = reference.compress(slow, one.config, document.tolist(), ratio, lead=LEAD, chosen=chosen)
        assert (memory.slots, memory.n_verbatim) == (len(slots), len(chosen))
        for layer in range(2):
            for what in ("keys", "values"):
                expected = reference.stack(slots, layer, what)
                torch.testing.assert_close(getattr(memory, what)[layer], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tail", ["flush", "raw"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_compressing_a_then_b_equals_compressing_both_for_every_cut(settings, tail):
    one, document, flag = engine(**settings), ids(19), flags(19)
    (whole,) = compress(one, [document], [flag], lead_token=LEAD, tail=tail)
    assert whole.n_verbatim
    for cut in range(1, 19):
        first = compress(one, [document[:cut]], [flag[:cut]], lead_token=LEAD, tail=tail)
        n_open = len(first[0].progress.open_ids)
        later = np.concatenate((np.zeros(n_open, bool), flag[cut:]))  # those of the open window are remembered
        (both,) = compress(one, [document[cut:]], [later], lead_token=LEAD, tail=tail, memories=first)
        assert both.progress == whole.progress
        assert gap(both, whole) < 1e-5


def test_keeping_nothing_changes_nothing_and_a_sink_is_not_kept_twice():
    one = engine(sink=2)
    nothing, everything = np.zeros(19, bool), np.ones(19, bool)
    with torch.no_grad():
        (plain,) = compress_ids(one.attachment, [ids(19)], ratio=3, joint=True)
    (same,) = compress(one, [ids(19)], [nothing], joint=True)
    assert gap(same, plain) == 0
    (full,) = compress(one, [ids(19)], [everything], joint=True)
    assert (full.n_sink, full.n_verbatim, full.n_gists) == (2, 17, plain.n_gists)


def test_flags_must_fit_the_tokens():
    with pytest.raises(InputError, match=r"\(4,\) flags of verbatim tokens for 5 tokens"):
        compress(engine(), [ids(5)], [flags(4)])


def text_of(memory, text):
    """What the verbatim slots of a memory stand for; a token of the tests is a byte."""
    runs = [s for s in memory.segments if s.kind == "verbatim"]
    return "".join(text.encode()[s.source_start : s.source_stop].decode() for s in runs)


def test_an_engine_keeps_what_the_policy_chooses(text_engine):
    words = "A-47112024-05-01jane@mail.example.org"
    memory = text_engine.compress(TEXT, verbatim="regex")
    assert text_of(memory, TEXT) == words * 2
    assert memory.verbatim == "regex"
    plain = text_engine.compress(TEXT)
    assert memory.slots == plain.slots + memory.n_verbatim
    assert verbatim_tokens(text_engine, [TEXT, "nothing"], "regex") == [memory.n_verbatim, 0]
    assert verbatim_tokens(text_engine, [TEXT], None) == [0]
    ids_too = text_engine.compress(torch.tensor([list(text_engine.tokenizer(TEXT).input_ids)]), verbatim="regex")
    assert gap(ids_too, memory) < 1e-5


def test_a_batch_of_texts_equals_each_alone_and_answers_are_read(text_engine):
    texts = [TEXT, "no", TEXT[:70], "7"]
    batch = text_engine.compress(texts, verbatim="regex", ratio=[2, 4, 8, 4])
    for memory, text, ratio in zip(batch, texts, (2, 4, 8, 4), strict=True):
        assert gap(memory, text_engine.compress(text, verbatim="regex", ratio=ratio)) < 1e-5
    assert text_engine.generate([*batch, "?"], max_new_tokens=2, return_ids=True).shape == (1, 2)


def test_a_memory_goes_on_with_its_own_policy_alone(text_engine):
    cut = TEXT.index("4711") + 2
    first = text_engine.compress(TEXT[:cut], verbatim="regex")
    assert (
        gap(
            text_engine.compress(TEXT[cut:], verbatim="regex", memory=first),
            text_engine.compress(TEXT, verbatim="regex"),
        )
        < 1e-5
    )  # also through a number
    with pytest.raises(MemoryMismatchError, match="verbatim 'regex', this call has ''"):
        text_engine.compress(TEXT[cut:], memory=first)
    sealed = first.seal()
    more = text_engine.compress("99", verbatim="regex", memory=sealed)
    assert more.n_verbatim == first.n_verbatim + 2
    assert sealed.progress.open_verbatim == ()


@pytest.mark.parametrize("slots", [60, 84, 90, 120, 400])
@pytest.mark.parametrize("policy", [None, "regex"])
def test_a_budget_counts_everything(text_engine, slots, policy):
    if policy and slots < 84:
        with pytest.raises(InputError, match="takes at least 78 slots"):
            text_engine.compress(TEXT, slots=60, verbatim=policy)
        return
    memory = text_engine.compress(TEXT, slots=slots, verbatim=policy)
    assert memory.slots <= slots
    ratio = memory.segments[-1].ratio
    assert ratio >= 2
    assert ratio == 2 or text_engine.compress(TEXT, ratio=ratio - 1, verbatim=policy).slots > slots
    assert text_engine.compress(TEXT, slots=400, ratio=7, verbatim=policy).segments[-1].ratio == 7


def test_a_budget_holds_for_a_memory_that_goes_on(text_engine):
    first = text_engine.compress(TEXT, ratio=2, verbatim="regex")
    both = text_engine.compress(TEXT, slots=300, verbatim="regex", memory=first)
    assert first.slots < both.slots <= 300
    with pytest.raises(InputError, match="slots is 0"):
        text_engine.compress(TEXT, slots=0)
    with pytest.raises(InputError, match="one ratio for all windows"):
        text_engine.compress(TEXT, ratio=[[2, 4]], slots=200)


def test_functions_and_names_of_ones_own(text_engine, monkeypatch):
    monkeypatch.setattr(verbatim, "_POLICIES", dict(verbatim._POLICIES))

    def capitals(text, offsets):
        return [text[a:b].isupper() for a, b in offsets]

    memory = text_engine.compress(TEXT, verbatim=capitals)
    assert (text_of(memory, TEXT), memory.verbatim) == ("OAOA", "custom")
    register_policy("capitals", capitals)
    named = text_engine.compress(TEXT, verbatim="capitals")
    assert (gap(named, memory), named.verbatim, policy_name("capitals")) == (0, "capitals", "capitals")
    for name in ("capitals", "regex", "custom", ""):
        with pytest.raises(InputError, match="cannot be given"):
            register_policy(name, capitals)
    with pytest.raises(InputError, match="no verbatim policy 'digits': take one of codes, regex"):
        text_engine.compress(TEXT, verbatim="digits")
    with pytest.raises(InputError, match=r"answer of shape \(1,\)"):
        text_engine.compress(TEXT, verbatim=lambda text, offsets: [True])
    with pytest.raises(InputError, match="needs a tokenizer"):
        engine().compress(ids(5)[None], verbatim="regex")


@pytest.mark.parametrize("scheme", ["bytes", "first", "always", "legacy"])
def test_any_tokenizer_gives_text_and_offsets(scheme):
    tokenizer = byte_level() if scheme == "bytes" else sentencepiece_like(scheme)
    text = "The fee was 4711 in 2024, naïve 日本 ٣ ok"
    row = TextCodec.of(tokenizer).encode(text)
    passage = Passage(row, tokenizer, engine().attachment, None)
    found, offsets = passage.text_and_offsets
    assert found == text
    assert offsets == sorted(offsets)
    (kept,) = choose("codes", [passage])
    chosen = {pair for pair, keep in zip(offsets, kept, strict=True) if keep}
    assert "".join(text[a:b].strip() for a, b in sorted(chosen)) == "47112024٣"


def test_tokens_of_one_character_are_kept_together(text_engine):
    text = "日٣ x é"
    codec_ids = torch.tensor([1, *text_engine.tokenizer(text).input_ids])
    passage = Passage(codec_ids, text_engine.tokenizer, text_engine.attachment, None)
    found, offsets = passage.text_and_offsets
    assert found == text
    assert offsets == [(0, 0), *[(0, 1)] * 3, *[(1, 2)] * 2, (2, 3), (3, 4), (4, 5), *[(5, 6)] * 2]
    assert np.flatnonzero(choose("regex", [passage])[0]).tolist() == [4, 5]
    assert "regex" in policy_names()


@torch.no_grad()
def slow_probability(one, window, place, lead):
    """Of one token behind those before it in its window, from the stock model alone."""
    head = ([] if lead is None else [lead]) + window[:place]
    return float(one.model(torch.tensor([head])).logits[0, -1].softmax(-1)[window[place]]) if head else 1.0


@pytest.mark.parametrize("lead", [None, LEAD])
@pytest.mark.parametrize("stride", [8, 5])
def test_probabilities_are_those_of_the_model_alone_within_a_window(lead, stride, monkeypatch):
    monkeypatch.setattr(surprisal, "_MAX_TOKENS", 16)  # so that windows take several batches
    monkeypatch.setattr(surprisal, "_MAX_ROWS", 7)
    one, document = engine(stride=stride), ids(21).tolist()
    found = surprisal.token_probabilities(one.attachment, torch.tensor(document), lead)
    windows = [document[start : start + stride] for start in range(0, 21, stride)]
    expected = [slow_probability(one, window, place, lead) for window in windows for place in range(len(window))]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert surprisal.token_probabilities(one.attachment, torch.zeros(0, dtype=torch.long), lead).shape == (0,)


@pytest.mark.parametrize("policy", ["surprisal", "both", Surprisal(0.004)], ids=str)
def test_surprising_tokens_are_kept_whatever_the_cut(text_engine, policy):
    whole = text_engine.compress(TEXT, verbatim=policy)
    passage = Passage(torch.tensor(text_engine.tokenizer(TEXT).input_ids), None, text_engine.attachment, 1)
    probable = surprisal.token_probabilities(text_engine.attachment, passage.ids, 1)
    assert abs(probable - 0.004).min() > 1e-6 < abs(probable - IMPROBABLE).min()  # no token is on the edge
    improbable = probable < (0.004 if isinstance(policy, Surprisal) else IMPROBABLE)
    chosen = improbable | choose("regex", [replace(passage, tokenizer=text_engine.tokenizer)])[0]
    chosen = chosen if policy == "both" else improbable
    assert 0 < chosen.sum() == whole.n_verbatim < len(chosen)
    for cut in (1, 40, 64, 99):  # no word that matters is cut
        first = text_engine.compress(TEXT[:cut], verbatim=policy)
        assert gap(text_engine.compress(TEXT[cut:], verbatim=policy, memory=first), whole) < 1e-5


def test_a_bound_must_be_a_probability():
    with pytest.raises(InputError, match=r"below is 2\.0"):
        Surprisal(2.0)
    assert engine().compress(ids(20)[None], verbatim="surprisal").verbatim == "surprisal"
