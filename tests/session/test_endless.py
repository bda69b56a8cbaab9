"""A million tokens stream through a session: slots, positions and the memory of the process stay where they are."""

import gc
from pathlib import Path

import pytest
from talking import CHATML

from ultragist_rag import GistConfig, UltraGist
from ultragist_rag.memory.prompt import count_prompt
from ultragist_rag.session import GistSession
from ultragist_rag.store import GistStore
from ultragist_rag.testing import tiny_model

N_TOKENS = 1_000_000
PAGE_BYTES = 4096
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def text(number):
    return " ".join(str((number * 7919 + place) % 9973) for place in range(400))


def append(session, number):
    assert session.append("user" if number % 2 == 0 else "assistant", text(number)) == number


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.fixture
def engine(text_engine, monkeypatch):
    tokenizer = text_engine.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", CHATML)
    model = tiny_model(vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=1024, **SIZES)
    return UltraGist.attach(model, tokenizer, GistConfig(window=256, ratio=8, lead_token=1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the session has more turns")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell how much memory is used")
def test_a_million_tokens_stay_within_slots_positions_and_memory(engine, tmp_path, own_secret):
    store = GistStore.open(tmp_path)
    session = engine.session(256, 128, segment_tokens=256, ladder=(8, 32), store=store, name="endless")
    n_tokens = number = 0
    resident, n_slots, n_positions = [], 0, 0
    while n_tokens < N_TOKENS:
        append(session, number)
        number += 1
        n_tokens += sum(session._state.turns[-1].lengths)
        if number % 10 == 0:
            counts = count_prompt(session.pieces("and now?"))
            n_slots, n_positions = max(n_slots, counts[0]), max(n_positions, sum(counts))
        if not resident and n_tokens >= N_TOKENS // 2:
            resident.append(resident_bytes())
    resident.append(resident_bytes())
    assert n_tokens == session.stats().n_tokens
    assert 200 < n_slots <= 256
    assert n_positions <= engine.max_positions
    assert resident[1] - resident[0] < 10_000_000
    assert session.stats().n_compressed_tokens <= 2 * n_tokens
    session.save()
    loaded = GistSession.load(engine, store, "endless")
    assert loaded.stats().n_compressed_tokens == 0
    assert [turn.content for turn in loaded.turns()] == [text(place) for place in range(number)]
