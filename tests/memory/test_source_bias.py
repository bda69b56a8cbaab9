"""Answers held to the words of their prompt: by a slow search, alone as in batches, from texts as from memories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from asking import asking_engine

from ultragist_rag import UltraGist
from ultragist_rag.errors import InputError
from ultragist_rag.memory.decoding import Decoding
from ultragist_rag.memory.generate import answer, askable
from ultragist_rag.memory.rows import Row, decode_rows
from ultragist_rag.memory.source_bias import Asked, SourceBias, following
from ultragist_rag.memory.text import TextCodec
from ultragist_rag.store import GistStore
from ultragist_rag.store.codec import decode, encode
from ultragist_rag.testing import tiny_engine

N = 16
FOX, DOG = "the quick brown fox jumps over the lazy dog", "a lazy dog sleeps in the brown grass of the hill"
STRONG = 1e6


@pytest.fixture(scope="module")
def engine():
    return asking_engine()


@pytest.fixture(scope="module")
def text_engine():
    return UltraGist.from_pretrained("bundled")


def ids_of(engine, text):
    return engine.tokenizer(text, add_special_tokens=False)["input_ids"]


def how(**settings):
    return Decoding.of({"max_new_tokens": N, **settings})


def slowly(source, answer):
    """Look for ever shorter ends of the answer."""
    for length in range(len(answer), 0, -1):
        starts = range(len(source) - length + 1)
        stops = [at + length for at in starts if source[at : at + length] == answer[-length:]]
        if stops:
            return sorted({source[stop] for stop in stops if stop < len(source)}), length
    return [], 0


def check_held(source, ids, ends=()):
    """Check that each token goes on as the source does, where that can be told; return how often it can."""
    n_told = 0
    for at in range(1, len(ids)):
        behind, _ = slowly(source, ids[:at])
        assert not behind or ids[at] in (*behind, *ends)
        n_told += bool(behind)
    return n_told


def test_the_longest_match_is_that_of_a_slow_search():
    rng = np.random.default_rng(0)
    matches = set()
    for _ in range(500):
        source = rng.integers(0, 4, rng.integers(1, 25)).tolist()
        said = rng.integers(0, 5, rng.integers(1, 7)).tolist()
        behind, length = following(np.array(source), said)
        assert (behind.tolist(), length) == slowly(source, said)
        matches.add((len(behind), length))
    assert {(0, 0), (0, 1), (1, 1), (2, 1), (1, 4)} <= matches


def test_scores_are_lowered_for_all_that_does_not_go_on_as_the_prompt_does():
    prompts = [[torch.tensor([5, 6, 7])], [torch.tensor([4, 5, 8]), torch.tensor([5, 9])]]
    scores = torch.arange(12.0).expand(4, -1)
    ids = torch.tensor([[1, 3, 5], [1, 5, 7], [1, 4, 5], [1, 3, 5]])
    changed = SourceBias(Asked(prompts, 1, [0], None), 3.0)(ids, scores)
    for row, (free, bias) in enumerate((([6, 0], 3), (range(12), 0), ([8, 0], 6), ([8, 9, 0], 3))):
        kept = torch.tensor([token in free for token in range(12)])
        assert torch.equal(changed[row], torch.where(kept, scores[row], scores[row] - bias))


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("Ouagadougou is large", ["Ouagadougou", "Ouagadougou is"]),
        (" Cura\u00e7ao is", [" Cura\u00e7ao"]),
        ("1,447 m", ["1", "1,", "1,447"]),
    ],
)
def test_no_answer_ends_inside_a_word_of_its_source(text_engine, text, ends):
    source, end = ids_of(text_engine, text), text_engine.tokenizer.eos_token_id
    codec = TextCodec.of(text_engine.tokenizer)
    bias = SourceBias(Asked([[torch.tensor(source)]], 0, [end], text_engine.tokenizer), 1.0, ["\n"])
    scores = torch.zeros(1, len(text_engine.tokenizer))
    (newline,) = codec.encode("\n").tolist()
    said = {codec.decode(source[:n]): bias(torch.tensor([source[:n]]), scores)[0] for n in range(1, len(source))}
    assert [text for text, changed in said.items() if changed[end] == 0] == ends
    assert all(changed[newline] == changed[end] for changed in said.values())
    assert len(said) > len(ends)


def test_a_bias_of_none_is_none():
    assert Decoding.of({"source_bias": None, "temperature": None}) == Decoding()


def test_a_strong_bias_lets_an_answer_leave_its_prompt_only_where_that_ends():
    engine = asking_engine(max_position_embeddings=1024)
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.randperm(320, generator=generator) for _ in range(2)])  # each token, twice
    (prompt,) = askable(engine, [[ids]], how())
    [[held]], [[free]] = (answer(engine, [prompt], how(source_bias=bias)) for bias in (STRONG, 0))
    assert held.ids[0] == free.ids[0]
    assert check_held(ids.tolist(), held.ids.tolist(), [2]) == len(held.ids) - 1 > 0
    with pytest.raises(AssertionError):
        check_held(ids.tolist(), free.ids.tolist(), [2])


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 3, "num_return_sequences": 3}, {"do_sample": True, "seed": 3, "top_k": 20}]
)
def test_a_prompt_in_a_batch_is_held_to_its_own_words(engine, settings):
    batch = [[FOX], [DOG]]
    together = answer(engine, askable(engine, batch, how()), how(source_bias=4, **settings))
    for prompt, rows in zip(batch, together, strict=True):
        [alone] = answer(engine, askable(engine, [prompt], how()), how(source_bias=4, **settings))
        assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in alone]


@pytest.fixture
def holding_engine(text_engine, monkeypatch):
    """An engine that holds answers strongly where a call does not say."""
    monkeypatch.setattr(text_engine, "source_bias", STRONG)
    return text_engine


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "seed": 3}, {"progressive": True}])
def test_where_a_call_says_nothing_the_bias_of_the_model_holds(settings):
    engine = tiny_engine(window=8, ratio=4, model={"max_position_embeddings": 1024})
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(0))[None]
    prompt = [ids] if "progressive" in settings else [engine.compress(ids), ids[:, 50:]]
    biases = (0.0, STRONG)
    free, held = (engine.generate(prompt, max_new_tokens=N, source_bias=bias, **settings) for bias in biases)
    assert not torch.equal(free, held)
    for bias, said in zip(biases, (free, held), strict=True):
        engine.source_bias = bias
        assert torch.equal(engine.generate(prompt, max_new_tokens=N, **settings), said)
        assert torch.equal(engine.generate(prompt, max_new_tokens=N, source_bias=0, **settings), free)


def test_streams_and_queues_are_held_as_their_model_says(holding_engine):
    prompt = [holding_engine.compress(FOX, ratio=32), "\n\nQuestion: What does the fox do?\nAnswer: the quick"]
    held, free = (holding_engine.generate(prompt, max_new_tokens=N, source_bias=bias) for bias in (STRONG, 0))
    assert held != free
    assert "".join(holding_engine.stream(prompt, max_new_tokens=N)) == held
    with holding_engine.batching() as batches:
        assert batches.answer(prompt, max_new_tokens=N).text == held
        assert batches.answer(prompt, max_new_tokens=N, source_bias=0).text == free


def test_a_prompt_with_an_unknown_memory_is_not_held_by_the_models_bias_and_its_neighbour_is(holding_engine):
    asked = "\n\nQuestion: What does the fox do?\nAnswer: the quick"
    known = holding_engine.compress(FOX, ratio=32)
    unknown = replace(known, source_ids=None)
    held, free = (holding_engine.generate([known, asked], max_new_tokens=N, source_bias=bias) for bias in (STRONG, 0))
    assert held != free
    with pytest.warns(UserWarning, match="decoded plainly"):
        together = holding_engine.generate([[unknown, asked], [known, asked]], max_new_tokens=N)
    assert together == [free, held]
    with pytest.raises(InputError, match="keep_source=False"):
        holding_engine.generate([unknown, asked], max_new_tokens=N, source_bias=STRONG)


def test_a_bias_of_the_model_that_is_none_is_refused(holding_engine):
    holding_engine.source_bias = -1.0
    with pytest.raises(InputError, match="source_bias is -1"):
        holding_engine.generate(["the fox"], max_new_tokens=1)


def test_rows_side_by_side_are_held_each_as_its_settings_say(engine):
    prompts = askable(engine, [[FOX], [DOG], [FOX]], how())
    ways = [how(source_bias=STRONG), how(), how(source_bias=2, do_sample=True, seed=1)]
    rows = [Row(engine, prompt, way) for prompt, way in zip(prompts, ways, strict=True)]
    decode_rows(engine, rows)
    for row in rows:
        [[alone]] = answer(engine, [row.prompt], row.decoding)
        assert row.ids[: len(alone.ids)] == alone.ids.tolist()


def test_memories_know_the_tokens_that_they_were_made_of(text_engine):
    ids = torch.tensor(ids_of(text_engine, FOX))
    memory = text_engine.compress(FOX)
    assert memory.source_ids.tolist() == ids.tolist()
    first = text_engine.compress(ids[None, :4], tail="raw")
    assert text_engine.compress(ids[None, 4:], memory=first, tail="raw").source_ids.tolist() == ids.tolist()
    joint = text_engine.forward(ids[None, :5]).memory
    assert text_engine.forward(ids[None, 5:], memory=joint).memory.source_ids.tolist() == ids.tolist()
    assert decode(encode(memory)).source_ids.tolist() == ids.tolist()


def test_an_answer_from_a_memory_is_held_to_its_text(text_engine):
    text, asked = "The capital of Chad is N'Djamena.", "\n\nQuestion: What is the capital of Chad?\nAnswer:"
    source, end = ids_of(text_engine, text) + ids_of(text_engine, asked), text_engine.tokenizer.eos_token_id
    prompt = [text_engine.compress(text, ratio=32), asked]
    held = text_engine.generate(prompt, max_new_tokens=N, source_bias=STRONG, return_ids=True)[0].tolist()
    assert check_held(source, held, [end]) > 0


def test_progressive_answers_are_held_to_all_that_was_read():
    engine = tiny_engine(window=8, ratio=4, model={"max_position_embeddings": 1024})
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(0))[None]
    held, free = (
        engine.generate([ids], max_new_tokens=N, progressive=True, source_bias=bias)[0].tolist() for bias in (STRONG, 0)
    )
    assert check_held(ids[0].tolist(), held) >= N - 2  # behind the last token nothing stands
    with pytest.raises(AssertionError):
        check_held(ids[0].tolist(), free)
    memory = engine.forward(ids[:, :53]).memory
    settings = {"max_new_tokens": N, "progressive": True, "source_bias": STRONG}
    assert engine.generate([memory, ids[:, 53:]], **settings)[0].tolist() == held


@pytest.mark.parametrize("keep_source", [True, False])
def test_a_store_keeps_tokens_with_texts_and_not_without(text_engine, keep_source):
    store = GistStore.open("memory://", secret="a secret of the tests", keep_source=keep_source)
    markers = store.get_or_compress(text_engine, [FOX], ratio=8)
    markers.append(store.put(text_engine.compress(DOG, ratio=8), DOG))
    markers.append(store.put(text_engine.compress(DOG, ratio=4)))
    for marker in markers:
        memory = store.get(marker)
        assert (memory.source_ids is not None) == keep_source
        prompt = [memory, "\n\nQuestion: Who?\nAnswer:"]
        if keep_source:
            assert isinstance(text_engine.generate(prompt, source_bias=2.0, max_new_tokens=3), str)
        else:
            with pytest.raises(InputError, match="keep_source=False"):
                text_engine.generate(prompt, source_bias=2.0, max_new_tokens=3)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_bias_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="source_bias"):
        how(source_bias=value)
