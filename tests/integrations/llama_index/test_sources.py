"""A response that is asked to says which memories it was read from, by id, score and stored metadata."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from llama_index_ultragist import UltraGistLLM
from ultragist_rag import GistStore
from ultragist_rag.store import parse_marker

TEXTS = ["Oslo lies by the sea, at the end of a fjord.", "Bergen has much rain."]
NOTES = [{"file_name": "oslo.md"}, {"file_name": "bergen.md"}]


@pytest.fixture
def markers(store: GistStore, chat_engine: Any) -> list[str]:
    return store.get_or_compress(chat_engine, TEXTS, ratio=4, metadata=NOTES)


@pytest.fixture(params=["attention", "leave-one-out"])
def asking(request: pytest.FixtureRequest, chat_engine: Any, store: GistStore) -> UltraGistLLM:
    return UltraGistLLM(engine=chat_engine, store=store, max_tokens=6, sources=request.param)


def cited(llm: UltraGistLLM, pieces: Any, markers: list[str]) -> list[Any]:
    scores = llm._get_engine().answer(pieces, sources=llm.sources, max_new_tokens=6).sources
    return [
        {"id": parse_marker(marker), "score": pytest.approx(score, abs=1e-5), "metadata": note}
        for marker, note, score in zip(markers, NOTES, scores, strict=True)
    ]


async def test_every_way_to_complete_names_the_sources(asking: UltraGistLLM, markers: list[str]) -> None:
    prompt = f"{markers[0]}\n{markers[1]}\nWhere is Oslo?"
    expected = cited(asking, asking._pieces(prompt, True), markers)
    given = asking.complete(prompt)
    assert given.additional_kwargs["sources"] == expected
    assert (await asking.acomplete(prompt)).additional_kwargs["sources"] == expected
    *parts, last = asking.stream_complete(prompt)
    assert last.additional_kwargs["sources"] == expected
    assert not any(part.additional_kwargs for part in parts)
    plain = asking.model_copy(update={"sources": None})
    assert plain.complete(prompt).text == given.text
    assert plain.complete(prompt).additional_kwargs == {}
    assert plain.complete(prompt, sources=asking.sources).additional_kwargs["sources"] == expected


async def test_every_way_to_chat_names_the_sources(asking: UltraGistLLM, markers: list[str]) -> None:
    messages = [ChatMessage(f"Read {markers[0]} and {markers[1]}", role="system"), ChatMessage("Where is Oslo?")]
    expected = cited(asking, asking._chat_pieces(messages), markers)
    assert asking.chat(messages).additional_kwargs["sources"] == expected
    assert (await asking.achat(messages)).additional_kwargs["sources"] == expected
    parts = [one async for one in await asking.astream_chat(messages)]
    assert parts[-1].additional_kwargs["sources"] == expected
