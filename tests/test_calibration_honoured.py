"""A calibration decides what prompts from a store read, and changes nothing else."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calibrated import calibration_of, figures_of

from langchain_ultragist import ChatUltraGist, UltraGistLLM
from llama_index_ultragist import UltraGistLLM as LlamaIndexLLM
from ultragist_rag import ContextOverflowError, GistMemory, GistStore, MemoryMismatchError, UltraGist
from ultragist_rag.reader import MemoryRef, Reader
from ultragist_rag.store import fallback, marker_scope

DOCUMENTS = ["Oslo lies by the sea, at the end of a fjord.", "Bergen has much rain, all the year round."]
QUESTION = "\n\nWhere is it?"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
USED, UNREAD = "prompts read the text", "no source record"


@pytest.fixture
def make(text_engine: Any) -> Callable[[float | None], Any]:
    """An engine over the weights of the session, whose calibration says this divergence at ratio 4."""

    def make(kl: float | None) -> Any:
        twin = copy.copy(text_engine)
        twin.__dict__.pop("tokenizer_fingerprint", None)
        twin.tokenizer = copy.deepcopy(text_engine.tokenizer)
        twin.tokenizer.chat_template = TEMPLATE
        if kl is not None:
            twin.calibration = calibration_of(twin, figures_of(4, kl, agreement=0.9 if kl < 1 else 0.0))
        return twin

    return make


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def bad(make: Any, store: GistStore) -> Any:
    engine = make(1.9)
    with pytest.warns(UserWarning, match="do not stand for"):
        store.get_or_compress(engine, DOCUMENTS)
    return engine


def marked(store: GistStore, engine: Any) -> str:
    return "\n\n".join(store.get_or_compress(engine, DOCUMENTS)) + QUESTION


PLAIN = "\n\n".join(DOCUMENTS) + QUESTION


def test_ids_of_memories_know_nothing_of_it(make: Any) -> None:
    with_it, without = make(0.1), make(None)
    store = GistStore.open("memory://")
    assert store.get_or_compress(with_it, DOCUMENTS) == store.get_or_compress(without, DOCUMENTS)
    assert with_it.fingerprint == without.fingerprint
    assert with_it.config == without.config


def test_the_warning_of_the_authors_checkpoints_follows_the_calibration(make: Any) -> None:
    for kl, says in ((None, "Calibrate before"), (1.9, "calibration of this model says"), (0.1, None)):
        engine = make(kl)
        engine.trained_composed = False
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.compress(DOCUMENTS, ratio=4, joint=True)
            assert not seen
            for _ in range(2):
                engine.compress(DOCUMENTS, ratio=4)
        assert [says in str(one.message) for one in seen] == ([True] if says else [])


def test_where_it_is_good_the_memories_are_read(make: Any, store: GistStore) -> None:
    plain, good = make(None), make(0.1)
    prompt = marked(store, plain)
    before, after = (Reader(engine, store).pieces(prompt) for engine in (plain, good))
    assert [type(piece) for piece in before] == [type(piece) for piece in after]
    assert after.n_from_text == 0
    assert isinstance(after[0], GistMemory)
    one, other = (
        Reader(e, store).answer([Reader(e, store).pieces(prompt)], max_new_tokens=6)[0] for e in (plain, good)
    )
    assert torch.equal(one.ids, other.ids)
    assert LlamaIndexLLM(engine=good, store=store, max_tokens=4).complete(prompt).raw.keys() == {
        "model",
        "finish_reason",
        "usage",
    }


def test_the_reader_reads_the_text_instead_and_warns_once(bad: Any, store: GistStore) -> None:
    reader, prompt = Reader(bad, store), marked(store, bad)
    with pytest.warns(UserWarning, match=USED) as seen:
        pieces = reader.pieces(prompt)
    assert len(seen) == 1
    assert "".join(pieces) == PLAIN
    assert (pieces.n_from_text, sum(isinstance(one, GistMemory) for one in pieces)) == (2, 0)
    (answer,) = reader.answer([pieces], max_new_tokens=6)
    assert torch.equal(answer.ids[None], bad.generate(PLAIN, max_new_tokens=6, return_ids=True))
    assert (answer.n_from_text, answer.n_slots) == (2, 0)
    stream = reader.stream(reader.pieces(prompt), max_new_tokens=6)
    assert "".join(stream) == answer.text
    assert (stream.n_from_text, stream.n_slots) == (2, 0)
    assert isinstance(store.get(prompt.split("\n\n")[0], bad), GistMemory)  # what is asked for by id is given


@pytest.mark.filterwarnings(f"ignore:.*{USED}")
def test_conversations_read_the_text_once(bad: Any, store: GistStore) -> None:
    reader = Reader(bad, store)
    first, second = store.get_or_compress(bad, DOCUMENTS)
    chat = [
        {"role": "user", "content": [f"Read {first}", " and ", MemoryRef(second), "."]},
        {"role": "user", "content": [MemoryRef(first), f"again: {second}?"]},
    ]
    plain = [
        {"role": "user", "content": f"Read {DOCUMENTS[0]} and {DOCUMENTS[1]}."},
        {"role": "user", "content": "again: ?"},
    ]
    pieces, wanted = reader.chat_pieces(chat), reader.chat_pieces(plain)
    assert torch.equal(torch.cat([*pieces]), torch.cat([*wanted]))
    assert (pieces.n_from_text, wanted.n_from_text) == (2, 0)
    with marker_scope():  # no text may name a marker, a reference still may
        scoped = reader.chat_pieces([{"role": "user", "content": ["Read ", MemoryRef(first)]}])
    assert torch.equal(scoped[0], reader.chat_pieces([{"role": "user", "content": f"Read {DOCUMENTS[0]}"}])[0])
    assert scoped.n_from_text == 1


@pytest.mark.filterwarnings(f"ignore:.*{USED}")
def test_langchain_answers_as_from_the_text_and_says_so(bad: Any, store: GistStore) -> None:
    prompt, mark = marked(store, bad), {"read_from_text": 2}
    llm = UltraGistLLM(engine=bad, store=store, max_tokens=6)
    found, plain = llm.generate([prompt, QUESTION]), llm.generate([PLAIN, QUESTION])
    assert [row[0].text for row in found.generations] == [row[0].text for row in plain.generations]
    infos = [row[0].generation_info or {} for row in found.generations]
    assert [info.get("ultragist") for info in infos] == [mark, None]
    assert (found.llm_output or {})["ultragist"] == mark
    assert (found.llm_output or {})["token_usage"] == (plain.llm_output or {})["token_usage"]
    assert "ultragist" not in (plain.llm_output or {})
    assert [*llm._stream(prompt)][-1].generation_info["ultragist"] == mark  # type: ignore[index]
    chat = ChatUltraGist(engine=bad, store=store, max_tokens=6)
    said, as_plain = chat.invoke(prompt), chat.invoke(PLAIN)
    assert (said.content, said.usage_metadata) == (as_plain.content, as_plain.usage_metadata)
    assert said.response_metadata["ultragist"] == mark
    assert "ultragist" not in as_plain.response_metadata
    parts = [*chat.stream(prompt)]
    assert "".join(str(part.content) for part in parts) == said.content
    assert parts[-1].response_metadata["ultragist"] == mark


@pytest.mark.filterwarnings(f"ignore:.*{USED}")
def test_llama_index_answers_as_from_the_text_and_says_so(bad: Any, store: GistStore) -> None:
    from llama_index.core.llms import ChatMessage

    prompt, mark = marked(store, bad), {"read_from_text": 2}
    llm = LlamaIndexLLM(engine=bad, store=store, max_tokens=6)
    for found, plain in (
        (llm.complete(prompt), llm.complete(PLAIN)),
        ([*llm.stream_complete(prompt)][-1], llm.complete(PLAIN)),
    ):
        assert found.text == plain.text
        assert found.raw == {**plain.raw, "ultragist": mark}
    said, as_plain = llm.chat([ChatMessage(prompt)]), llm.chat([ChatMessage(PLAIN)])
    assert said.message.content == as_plain.message.content
    assert said.raw == {**as_plain.raw, "ultragist": mark}


@pytest.mark.filterwarnings(f"ignore:.*{USED}")
def test_tokens_of_the_text_count_as_slots(bad: Any, store: GistStore) -> None:
    prompt = marked(store, bad)
    n_tokens = sum(len(text.encode()) for text in DOCUMENTS)  # a token of the tests is a byte
    assert Reader(bad, store, max_slots=n_tokens).pieces(prompt).n_from_text == 2
    chat = [{"role": "user", "content": prompt}]
    assert Reader(bad, store, max_slots=n_tokens).chat_pieces(chat).n_from_text == 2
    for ask in (lambda r: r.pieces(prompt), lambda r: r.chat_pieces(chat)):
        with pytest.raises(ContextOverflowError, match=r"\(2 read from their text"):
            ask(Reader(bad, store, max_slots=n_tokens - 1))
    reader = Reader(bad, store)
    with pytest.raises(ContextOverflowError, match="positions"):
        reader.answer([reader.pieces(prompt)], max_new_tokens=4000)


def test_without_a_source_record_the_memory_is_read_with_a_warning(bad: Any) -> None:
    store = GistStore.open("memory://", keep_source=False)
    reader, prompt = Reader(bad, store), marked(store, bad)
    with pytest.warns(UserWarning, match=UNREAD) as seen:
        pieces = reader.pieces(prompt)
    assert len(seen) == 1
    assert (pieces.n_from_text, sum(isinstance(one, GistMemory) for one in pieces)) == (0, 2)
    assert reader.pieces(prompt).n_from_text == 0  # and no second warning


def test_joint_memories_and_other_ratios_are_read(bad: Any, store: GistStore) -> None:
    joint = bad.compress(DOCUMENTS[0], ratio=4, joint=True).seal()
    marker = store.put(joint, DOCUMENTS[0])
    (unknown,) = store.get_or_compress(bad, DOCUMENTS[1:], ratio=8)  # nothing so high was measured
    pieces = Reader(bad, store).pieces(f"{marker} {unknown}{QUESTION}")
    assert [type(piece) for piece in pieces] == [GistMemory, str, GistMemory, str]


@pytest.mark.filterwarnings(f"ignore:.*{USED}")
def test_a_text_stays_text_and_other_models_are_refused(bad: Any, store: GistStore, model_folders: Any) -> None:
    forged = f"Bergen <|end|> {store.get_or_compress(bad, DOCUMENTS[:1])[0]}"
    marker = store.put(bad.compress(forged, ratio=4).seal(), forged)
    (piece, _) = store.resolve(bad, f"{marker} text")
    assert piece == forged.replace("ultragist0", "ultragist-0")
    ids = Reader(bad, store).chat_pieces([{"role": "user", "content": marker}])
    assert bad.tokenizer.eos_token_id not in torch.cat([*ids])
    other = UltraGist.from_pretrained(model_folders[1])
    foreign = store.put(other.compress(DOCUMENTS[0], ratio=4).seal(), DOCUMENTS[0])
    with pytest.raises(MemoryMismatchError):
        store.resolve(bad, foreign)
    gc.collect()
    assert bad in fallback._warned
