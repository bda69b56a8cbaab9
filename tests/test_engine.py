import threading

import pytest
import torch

from ultragist_rag import GistConfig, InputError, MemoryMismatchError, UltraGist
from ultragist_rag.errors import ContextOverflowError
from ultragist_rag.memory import ingest
from ultragist_rag.testing import tiny_engine, tiny_model

IDS = [torch.randint(3, 100, (1, n), generator=torch.Generator().manual_seed(n)) for n in (5, 21, 8)]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}


@pytest.fixture(scope="module")
def engine():
    return tiny_engine(model=SMALL)


def equal(mine, other):
    return mine.segments == other.segments and all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip((*mine.keys, *mine.values), (*other.keys, *other.values), strict=True)
    )


def test_one_document_gives_one_memory_and_a_list_a_list(engine):
    one, several = engine.compress(IDS[0]), engine.compress(IDS)
    assert isinstance(several, list)
    assert equal(one, several[0])
    assert [memory.n_source_tokens for memory in several] == [5, 21, 8]
    assert engine.compress([]) == []


def test_the_ratio_is_per_call_per_document_or_per_window(engine):
    assert [memory.slots for memory in engine.compress(IDS)] == [2, 6, 2]
    assert [memory.slots for memory in engine.compress(IDS, ratio=2)] == [3, 11, 4]
    assert [memory.slots for memory in engine.compress(IDS, ratio=[1, 8, 3])] == [5, 3, 3]
    assert [memory.slots for memory in engine.compress(IDS, ratio=[[1], [8, 2], [3]])] == [5, 1 + 4 + 3, 3]


def test_many_documents_are_compressed_in_several_batches(engine):
    documents = [torch.arange(3, 4 + n % 7)[None] for n in range(70)]
    memories = engine.compress(documents)
    assert [memory.n_source_tokens for memory in memories] == [1 + n % 7 for n in range(70)]
    assert equal(memories[69], engine.compress(documents[69]))


def test_batches_hold_every_document_once_and_stay_within_their_bounds(engine, monkeypatch):
    monkeypatch.setattr(ingest, "_MAX_DOCUMENTS", 4)
    monkeypatch.setattr(ingest, "_MAX_TOKENS", 20)
    sizes = []
    real = ingest.compress_ids

    def noted(attachment, documents, **settings):
        sizes.append([len(ids) for ids in documents])
        return real(attachment, documents, **settings)

    monkeypatch.setattr(ingest, "compress_ids", noted)
    lengths = [5, 30, 1, 7, 3, 12, 2, 1, 8, 1]
    memories = engine.compress([torch.arange(3, 3 + n)[None] for n in lengths])
    assert [memory.n_source_tokens for memory in memories] == lengths
    assert sizes == [[1, 1, 1, 2], [3, 5, 7], [8, 12], [30]]  # a window of 8 tokens bounds what a document counts


def test_going_on_from_a_memory(engine):
    whole = engine.compress(torch.cat((IDS[1], IDS[2]), 1))
    first = engine.compress(IDS[1])
    assert equal(engine.compress(IDS[2], memory=first), whole)
    with pytest.raises(InputError, match="2 texts and one memory"):
        engine.compress(IDS[:2], memory=first)
    with pytest.raises(MemoryMismatchError):
        tiny_engine(model=SMALL, seed=3).compress(IDS[2], memory=first)


def test_compressing_changes_neither_model_nor_memory_and_keeps_no_gradients(engine):
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    memory = engine.compress(IDS[1])
    kept = [tensor.clone() for tensor in memory.keys]
    engine.compress(IDS[0], memory=memory)
    engine.forward(IDS[0], memory=memory.seal())
    assert all(torch.equal(a, b) for a, b in zip(memory.keys, kept, strict=True))
    assert all(torch.equal(engine.model.state_dict()[name], value) for name, value in before.items())
    assert not memory.keys[0].requires_grad


def test_the_fingerprint_follows_the_active_adapters(engine, monkeypatch):
    before = engine.fingerprint
    monkeypatch.setattr(engine.model, "_hf_peft_config_loaded", True, raising=False)
    monkeypatch.setattr(engine.model, "active_adapters", lambda: ["other"], raising=False)
    assert engine.fingerprint != before
    monkeypatch.undo()
    assert engine.fingerprint == before


def test_memories_carry_the_fingerprint_of_the_model(engine):
    assert engine.compress(IDS[0]).fingerprint == engine.fingerprint == engine.forward(IDS[0]).memory.fingerprint
    assert engine.compress(IDS[0]).tokenizer_fingerprint == engine.tokenizer_fingerprint == ""


def test_a_lead_token_is_encoded_in_front_once():
    with_lead = tiny_engine(model=SMALL, lead_token=1)
    bare = with_lead.compress(IDS[0])
    own = with_lead.compress(torch.cat((torch.tensor([[1]]), IDS[0]), 1))
    assert equal(bare, own)
    assert bare.lead_token == 1
    assert not equal(bare, tiny_engine(model=SMALL).compress(IDS[0]))
    joint = with_lead.compress(torch.cat((torch.tensor([[1]]), IDS[0]), 1), joint=True)
    assert (joint.n_source_tokens, joint.lead_token, joint.joint) == (6, None, True)


def test_text_needs_a_tokenizer_and_ids_must_fit(engine):
    with pytest.raises(InputError, match="no tokenizer"):
        engine.compress("text")
    with pytest.raises(InputError, match="shape"):
        engine.compress(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(InputError, match="shape"):
        engine.compress(torch.zeros(1, 3))
    with pytest.raises(InputError, match="between 3 and 100"):
        engine.compress(torch.tensor([[3, 100]]))
    with pytest.raises(InputError, match="empty"):
        engine.compress([IDS[0], IDS[0][:, :0]])


def test_text_is_compressed_as_its_ids_with_what_the_tokenizer_prepends(text_engine):
    text = "Gist tokens <|end|> stand for text."
    memory = text_engine.compress(text)
    ids = torch.tensor([text_engine.tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]])
    assert equal(memory, text_engine.compress(ids))
    assert memory.lead_token == text_engine.lead_token == 1
    assert memory.tokenizer_fingerprint == text_engine.tokenizer_fingerprint != ""


def test_overlong_documents_are_refused_with_the_counts():
    with pytest.raises(ContextOverflowError, match="the model has 32"):
        tiny_engine(model={**SMALL, "max_position_embeddings": 32}).compress(torch.arange(3, 90)[None], ratio=2)


def test_closing_gives_the_model_back():
    model = tiny_model(**SMALL)
    names = set(model.state_dict())
    with UltraGist.attach(model, config=GistConfig(window=8)) as engine:
        assert engine.model is model
        assert engine.max_positions == 1024
        assert set(engine.gist_parameters()) == {name for name in model.state_dict() if "ultragist" in name}
    assert set(model.state_dict()) == names


def test_threads_get_what_they_would_get_alone(engine):
    alone, found = [engine.compress(ids) for ids in IDS], {}

    def work(number):
        for _ in range(3):
            found[number] = engine.compress(IDS[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(found[number], alone[number]) for number in range(3))


def test_half_precision_is_close_to_full():
    full, half = tiny_engine(model=SMALL), tiny_engine(model=SMALL)
    half.model.to(torch.bfloat16)
    mine, other = half.compress(IDS[1]), full.compress(IDS[1])
    assert mine.dtype == torch.bfloat16
    for a, b in zip(mine.keys, other.keys, strict=True):
        assert (a.float() - b).norm() < 0.05 * b.norm()
