"""Recurrent memories, held against plain forwards of Hugging Face over input embeddings."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from ultragist_rag.config import GistConfig
from ultragist_rag.engine import UltraGist
from ultragist_rag.errors import InputError, MemoryMismatchError
from ultragist_rag.memory.compress import Verbatim, compress_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.prompt import prompt_forward
from ultragist_rag.testing import FAMILIES, tiny_engine, tiny_model

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
RECURRENT = ARCHITECTURES["coarse-recurrent"]
LEAD = 1
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def ids(n, seed=0):
    return torch.randint(3, 100, (n,), generator=torch.Generator().manual_seed(seed))


def engine(family="llama", model=None, **settings):
    return tiny_engine(family, model={**SMALL, **(model or {})}, **{**RECURRENT, **settings})


def slow_compress(engine, document, ratio, gist_rows=True):
    """Window by window: lead token, soft embeddings, tokens, gists, read by a causal model without cache or mask."""
    decoder, window = engine.model.model, engine.config.window
    soft = torch.empty(0, engine.model.config.hidden_size)
    for start in range(0, len(document), window):
        tokens = document[start : start + window]
        n_gists = -(-len(tokens) // ratio)
        gists = decoder.ultragist_embed_tokens.weight.expand(n_gists, -1)
        rows = torch.cat((decoder.embed_tokens(torch.tensor([LEAD])), soft, decoder.embed_tokens(tokens), gists))
        is_gist = torch.arange(len(rows))[None] >= len(rows) - n_gists
        more = {"gist_mask": is_gist} if gist_rows else {}
        soft = torch.cat((soft, decoder(inputs_embeds=rows[None], **more).last_hidden_state[0, -n_gists:]))
    return soft


def slow_logits(engine, prompt):
    """Logits of the tokens of a prompt of ids and embeddings, all of them rows of one causal forward."""
    is_token = torch.cat([torch.full((len(piece),), not piece.dtype.is_floating_point) for piece in prompt])
    embed = engine.model.get_input_embeddings()
    rows = torch.cat([piece if piece.dtype.is_floating_point else embed(piece) for piece in prompt])
    return engine.model(inputs_embeds=rows[None]).logits[0, is_token]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_the_slow_loop_for_each_document(family):
    one, documents, ratios = engine(family), [ids(n, seed=n) for n in (5, 29, 8)], [2, 3, 8]
    with torch.no_grad():
        memories = compress_ids(one.attachment, documents, ratio=ratios, lead_token=LEAD)
        for memory, document, ratio in zip(memories, documents, ratios, strict=True):
            torch.testing.assert_close(memory.embeddings, slow_compress(one, document, ratio), **TOLERANCE)
            assert (memory.slots, memory.n_gists) == (len(memory.embeddings), len(memory.embeddings))


@pytest.mark.parametrize("projections", ["qkvo", ""])
@torch.no_grad()
def test_before_training_it_is_what_the_untouched_model_computes(projections):
    config = GistConfig(window=8, ratio=4, lead_token="none", projections=projections, **RECURRENT)
    one = UltraGist.attach(tiny_model(**SMALL), None, config)
    (memory,) = compress_ids(one.attachment, [ids(29)], ratio=4, lead_token=LEAD)
    expected = slow_compress(one, ids(29), 4, gist_rows=False)
    torch.testing.assert_close(memory.embeddings, expected, **TOLERANCE)


def prompts(one):
    """Prompts of different lengths; one memory stands in two of them, and twice in one."""
    first, second = compress_ids(one.attachment, [ids(19), ids(7, 1)], ratio=[2, 3], lead_token=LEAD)
    lead = torch.tensor([LEAD])
    return [
        [lead, first, ids(3, 2), second, ids(6, 3)],
        [ids(17, 4)],
        [second, first, second, ids(2, 5)],
    ]


def as_embeddings(prompt):
    return [piece.embeddings if isinstance(piece, GistMemory) else piece for piece in prompt]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sequential", [False, True])
@torch.no_grad()
def test_prompts_read_embeddings_as_rows_among_their_tokens(attention, sequential):
    one = engine(model={"attn_implementation": attention})
    batch = prompts(one)
    state = prompt_forward(one.attachment, batch, sequential=sequential)
    for prompt, logits, row, filled in zip(batch, state.logits, state.ids, state.filled, strict=True):
        torch.testing.assert_close(logits, slow_logits(one, as_embeddings(prompt)), **TOLERANCE)
        shown = [torch.full((p.slots,), -1) if isinstance(p, GistMemory) else p for p in prompt]
        assert row[filled].tolist() == torch.cat(shown).tolist()
        assert state.cache.get_seq_length() == len(row)


@torch.no_grad()
def test_answers_equal_greedy_decoding_without_a_cache():
    one = engine()
    batch = prompts(one)
    for prompt, answer in zip(batch, one.generate(batch, max_new_tokens=6, eos_token_id=[]), strict=True):
        said = as_embeddings(prompt)
        for _ in range(6):
            said.append(slow_logits(one, said)[-1:].argmax(-1))
        assert answer[0].tolist() == torch.cat(said[-6:]).tolist()


def test_attention_to_each_memory_is_found_among_the_tokens():
    one = engine()
    batch = [prompts(one)[0], prompts(one)[2]]
    alone = [one.answer([prompt], sources="attention", max_new_tokens=3)[0].sources for prompt in batch]
    together = [answer.sources for answer in one.answer(batch, sources="attention", max_new_tokens=3)]
    assert [len(sources) for sources in together] == [2, 3]
    assert torch.tensor(sum(alone, ())).allclose(torch.tensor(sum(together, ())), atol=1e-5)
    assert all(score > 0 for sources in together for score in sources)


def test_gradients_equal_those_of_the_slow_loop():
    found = []
    for checkpointing in (None, False, True):
        one = engine()
        if checkpointing is None:
            soft = slow_compress(one, ids(19), 4)
            logits = slow_logits(one, [torch.tensor([LEAD]), soft, ids(5, 1)])
        else:
            one.model.train(checkpointing)
            if checkpointing:
                for layer in one.model.model.layers:
                    layer.gradient_checkpointing = True
                    layer._gradient_checkpointing_func = lambda f, *a: torch.utils.checkpoint.checkpoint(
                        f, *a, use_reentrant=False
                    )
            memories = compress_ids(one.attachment, [ids(19)], ratio=4, lead_token=LEAD)
            (logits,) = prompt_forward(one.attachment, [[torch.tensor([LEAD]), *memories, ids(5, 1)]]).logits
        logits[1:].logsumexp(-1).sum().backward()
        found.append({name: value.grad for name, value in one.model.named_parameters() if value.grad is not None})
    assert "model.ultragist_embed_tokens.weight" in found[0]
    assert "model.layers.1.self_attn.ultragist_o_proj.weight" in found[0]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, found[0][name], atol=1e-4, rtol=1e-4)


def test_a_saved_model_goes_on_with_its_memories(tmp_path):
    one = engine()
    (tmp_path / "model").mkdir()
    one.save_pretrained(tmp_path / "model")
    other = UltraGist.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert other.config == one.config
    memory = one.compress(ids(13)[None])
    torch.testing.assert_close(other.compress(ids(13)[None]).embeddings, memory.embeddings, **TOLERANCE)
    more, whole = other.compress(ids(9, 1)[None], memory=memory), torch.cat((ids(13), ids(9, 1)))[None]
    torch.testing.assert_close(more.embeddings, one.compress(whole).embeddings, **TOLERANCE)


def test_what_needs_raw_keys_is_refused():
    one, kv = engine(), tiny_engine(model=SMALL, **ARCHITECTURES["coarse-kv"])
    for settings in ({"tail": "raw"}, {"verbatim": Verbatim("custom", [np.ones(9, bool)])}):
        with pytest.raises(InputError, match="holds no raw tokens"):
            compress_ids(one.attachment, [ids(9)], ratio=4, **settings)
    with pytest.raises(InputError, match="no progressive forward"):
        one.forward(ids(9)[None])
    with pytest.raises(InputError, match="has no embeddings"):
        _ = kv.compress(ids(9)[None]).embeddings
    with pytest.raises(MemoryMismatchError, match="made with memory 'kv'"):
        one.generate([kv.compress(ids(9)[None]), ids(2)[None]], max_new_tokens=1)
