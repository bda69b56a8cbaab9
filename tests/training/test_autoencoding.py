"""A gist is read from its own keys and values alone, in one padded batch as one by one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ultragist_rag import GistConfig
from ultragist_rag.errors import TrainingError
from ultragist_rag.memory.compress import compress_ids
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.segments import table_of
from ultragist_rag.modeling.attach import Attachment, attach
from ultragist_rag.testing import tiny_model
from ultragist_rag.training.autoencoding import GistDecoder, autoencoding_loss

DOCUMENTS = [torch.arange(5, 23), torch.arange(40, 47), torch.arange(60, 61)]  # 18, 7 and 1 tokens


@pytest.fixture(params=["llama", "qwen3"])
def attachment(request: pytest.FixtureRequest) -> Attachment:
    return attach(tiny_model(request.param), GistConfig(window=8, ratio=4))


def _memories(attachment: Attachment, window: int = 8) -> list[GistMemory]:
    return compress_ids(attachment, DOCUMENTS, ratio=[[4, 2], [3], [4]], window=window)


def _slow_loss(decoder: GistDecoder, attachment: Attachment, memories: list[GistMemory]) -> torch.Tensor:
    """One gist, one token at a time, spelt out."""
    each = []
    for memory, document in zip(memories, DOCUMENTS, strict=True):
        for segment in memory.segments:
            assert segment.ratio
            for number, slot in enumerate(range(segment.start, segment.stop)):
                start = segment.source_start + number * segment.ratio
                tokens = document[start : min(start + segment.ratio, segment.source_stop)]
                state = torch.cat([layer[0, :, slot].flatten() for layer in (*memory.keys, *memory.values)])
                hidden = decoder.entry(state)[None]
                for token in tokens:
                    positions = torch.arange(len(hidden))[None]
                    rotary = attachment.decoder.rotary_emb(hidden[None], position_ids=positions)
                    out = decoder.block(hidden[None], position_ids=positions, position_embeddings=rotary)
                    logits = attachment.model.lm_head(decoder.norm(out[0, -1:]))
                    each.append(functional.cross_entropy(logits, token[None]))
                    hidden = torch.cat((hidden, attachment.decoder.embed_tokens(token[None])))
    return torch.stack(each).mean()


def test_the_padded_batch_gives_the_loss_of_gists_one_by_one(attachment: Attachment) -> None:
    decoder, memories = GistDecoder(attachment), _memories(attachment)
    assert {int(s) for m in memories for s in table_of(m.segments).stop - table_of(m.segments).start} == {1, 2, 3, 4}
    batch = autoencoding_loss(decoder, memories, DOCUMENTS, random.Random(0))
    assert torch.allclose(batch, _slow_loss(decoder, attachment, memories), atol=1e-5)


def test_gradients_reach_the_gist_parameters_and_the_decoder(attachment: Attachment) -> None:
    decoder = GistDecoder(attachment)
    autoencoding_loss(decoder, _memories(attachment), DOCUMENTS, random.Random(0)).backward()
    gists = {name: value.grad for name, value in attachment.parameters().items() if "k_proj" in name}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gists.values())
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_a_gist_is_read_without_the_others(attachment: Attachment) -> None:
    memory = _memories(attachment)[0]
    keys = [layer.detach().requires_grad_() for layer in memory.keys]
    decoder = GistDecoder(attachment, n_gists=1)
    autoencoding_loss(decoder, [replace(memory, keys=tuple(keys))], DOCUMENTS[:1], random.Random(3)).backward()
    touched = [set(layer.grad.abs().sum((0, 1, 3)).nonzero().flatten().tolist()) for layer in keys]
    assert all(len(slots) == 1 for slots in touched)
    assert len(set.union(*touched)) == 1


def test_a_decoder_learns_to_read_what_gists_keep(attachment: Attachment) -> None:
    decoder, memories = GistDecoder(attachment), [memory.detach() for memory in _memories(attachment)]
    attachment.model.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = autoencoding_loss(decoder, memories, DOCUMENTS, random.Random(0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_base_is_shared_and_neither_owned_nor_drawn_from(attachment: Attachment) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    decoder, again = GistDecoder(attachment, seed=1), GistDecoder(attachment, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    shared = {id(parameter) for parameter in attachment.model.parameters()}
    assert not shared & {id(parameter) for parameter in decoder.parameters()}
    pairs = zip(decoder.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_memories_without_gists_cost_nothing_and_wrong_documents_are_refused(attachment: Attachment) -> None:
    decoder, memories = GistDecoder(attachment), _memories(attachment)
    plain = compress_ids(attachment, DOCUMENTS[1:2], ratio=4, tail="raw", window=16)
    assert not plain[0].n_gists
    assert autoencoding_loss(decoder, plain, DOCUMENTS[1:2], random.Random(0)).item() == 0
    with pytest.raises(TrainingError, match="stands for 18 tokens"):
        autoencoding_loss(decoder, memories[:1], [DOCUMENTS[0][:9]], random.Random(0))
    with pytest.raises(TrainingError, match="3 memories of 1 documents"):
        autoencoding_loss(decoder, memories, DOCUMENTS[:1], random.Random(0))
