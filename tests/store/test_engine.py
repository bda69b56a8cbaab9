"""The store with a real engine: what comes out of it answers as what went in."""

import pytest
import torch
from architectures import ALL, ARCHITECTURES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import MemoryMismatchError
from ultragist_rag.store import GistStore
from ultragist_rag.testing import tiny_engine

TEXTS = ["Bahrain is an archipelago.", "Bolivia has two capitals, and no coast since 1884.", "x"]


def byte_tokenizer(bos="<bos>"):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", bos, "<eos>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token=bos, eos_token="<eos>")


def make(seed=0, bos="<bos>", **settings):
    bare = tiny_engine(seed=seed, model={"vocab_size": 300}, **settings)
    return UltraGist(bare.attachment, byte_tokenizer(bos))


@pytest.fixture(scope="module")
def real():
    return make()


def close(one, other):
    return one.segments == other.segments and all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(one.keys + one.values, other.keys + other.values, strict=True)
    )


@pytest.mark.parametrize("ratio", [None, 1, 3, 8])
def test_a_memory_put_by_hand_is_found_before_compressing(store, real, ratio):
    for text in TEXTS if ratio is None else TEXTS[:2]:
        marker = store.put(real.compress(text, ratio=ratio), text=text)
        assert store.find(text, real, ratio=ratio) == marker
        assert store.get_or_compress(real, [text], ratio=ratio) == [marker]
    joint = real.compress(TEXTS[0], joint=True)
    assert store.put(joint, text=TEXTS[0]) == store.find(TEXTS[0], real, joint=True)


def test_a_stored_memory_answers_as_the_live_one(store, real, same):
    live = [memory.seal() for memory in real.compress(TEXTS)]
    markers = store.get_or_compress(real, TEXTS)
    prompt = "Read {} and {} and {}. Answer:"
    pieces = store.resolve(real, prompt.format(*markers))
    assert [type(piece) for piece in pieces] == [str, type(live[0])] * 3 + [str]
    assert all(close(piece, memory) for piece, memory in zip(pieces[1::2], live, strict=True))
    expected = real.generate(["Read ", live[0], " and ", live[1], " and ", live[2], ". Answer:"], max_new_tokens=8)
    assert real.generate(pieces, max_new_tokens=8) == expected
    assert store.expand_markers(prompt.format(*markers)) == prompt.format(*TEXTS)


def test_tiers_and_quantised_files_answer_as_what_was_stored(url, real, same):
    settings = {"secret": "a secret of the tests", "quantise": "int8"}
    store = GistStore.open(url, **settings, ram_bytes=10**6, gpu_bytes=10**6, device="cpu")
    prompt = "Read {} and {}. Answer:".format(*store.get_or_compress(real, TEXTS[:2]))
    first, *others = [store.resolve(real, prompt) for _ in range(3)]
    others.append(GistStore.open(url, **settings).resolve(real, prompt))
    assert all(same(one[1], first[1]) and same(one[3], first[3]) for one in others)
    assert store.stats().tiers["gpu"].n_hits == 4
    assert len({real.generate(pieces, max_new_tokens=8) for pieces in (first, *others)}) == 1


@pytest.mark.parametrize("settings", ALL)
def test_every_architecture_is_stored_quantised_and_read(store, url, same, settings):
    with make(**settings) as one:
        live = one.compress(TEXTS[1]).seal()
        (marker,) = store.get_or_compress(one, [TEXTS[1]])
        read = store.get(marker, one)
        assert same(read, live)
        assert one.generate(["Read ", read, ". Answer:"], max_new_tokens=8) == one.generate(
            ["Read ", live, ". Answer:"], max_new_tokens=8
        )
        small = GistStore.open(url, secret="a secret of the tests", quantise="int8")
        rough = small.get(*small.get_or_compress(one, [TEXTS[1]]), one)
        for mine, exact in zip(rough.keys + rough.values, live.keys + live.values, strict=True):
            assert mine.shape == exact.shape
            assert 0 < (mine - exact).norm() < 0.02 * exact.norm()


def test_recurrent_memories_and_those_of_keys_are_told_apart_even_with_the_same_weights(store):
    with make(**ARCHITECTURES["coarse-kv"]) as kv, make(**ARCHITECTURES["coarse-recurrent"]) as recurrent:
        assert kv.fingerprint == recurrent.fingerprint
        for one, other in ((kv, recurrent), (recurrent, kv)):
            (marker,) = store.get_or_compress(one, TEXTS[:1])
            with pytest.raises(MemoryMismatchError, match="memory"):
                store.get(marker, other)


def test_a_stored_memory_goes_on_as_the_live_one(store, real, same):
    begun = real.compress(TEXTS[0])
    read = store.get(store.put(begun, text=TEXTS[0]), real)
    assert same(read, begun)
    assert same(real.compress(TEXTS[1], memory=read), real.compress(TEXTS[1], memory=begun))


def test_an_evicted_memory_is_made_again_from_its_source(store, real):
    markers = store.get_or_compress(real, TEXTS, ratio=2)
    live = [store.get(marker, real) for marker in markers]
    for marker in markers:
        store._shelf.place.delete((store._shelf.key(marker[10:-1], ".gist"),))
    assert not any(marker in store for marker in markers)
    again = [store.get(marker, real) for marker in markers]
    assert all(close(one, other) for one, other in zip(live, again, strict=True))
    assert all(marker in store for marker in markers)


@pytest.mark.parametrize("other", [{"seed": 3}, {"bos": "<s>"}, {"window": 16}, {"attention": "segmentation"}])
def test_another_model_tokenizer_or_config_is_refused(store, real, other):
    (marker,) = store.get_or_compress(real, TEXTS[:1])
    with make(**other) as stranger:
        assert store.find(TEXTS[0], stranger) is None
        with pytest.raises(MemoryMismatchError, match="made with"):
            store.get(marker, stranger)


def test_a_second_process_would_find_what_the_first_one_stored(tmp_path, real, same):
    first = GistStore.open(tmp_path / "gists", secret="a secret of the tests")
    markers = first.get_or_compress(real, TEXTS)
    second = GistStore.open(str(tmp_path / "gists"), secret="a secret of the tests")
    with make() as twin:
        assert second.get_or_compress(twin, TEXTS) == markers
        assert second.stats().n_hits == 3
        assert all(same(second.get(marker, twin), first.get(marker)) for marker in markers)
