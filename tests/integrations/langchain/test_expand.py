"""The type of the value stays; each document stands once in a prompt, as its memory would."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from langchain_core.runnables import RunnableLambda

from langchain_ultragist import UltraGistCompressor, expand_markers
from ultragist_rag import GistNotFoundError, GistStore, InputError
from ultragist_rag.store import marker_scope, parse_marker

TEXTS = ["Oslo lies by the sea.", "Bergen has much rain, all the year."]


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def documents(text_engine: Any, store: GistStore) -> list[Document]:
    compressor = UltraGistCompressor(engine=text_engine, store=store)
    return compressor.compress_documents([Document(text, id=text[:4]) for text in TEXTS], "")


@pytest.fixture
def markers(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


def test_texts_and_prompt_values(store: GistStore, markers: list[str]) -> None:
    text = f"{markers[1]}\n\n{markers[0].upper()} {markers[1]}Where?"
    expected = f"{TEXTS[1]}\n\n{TEXTS[0]} Where?"
    assert expand_markers(text, store) == expected
    assert expand_markers(StringPromptValue(text=text), store) == StringPromptValue(text=expected)
    assert expand_markers("nothing to do", store) == "nothing to do"


def test_messages_and_chat_prompts(store: GistStore, markers: list[str]) -> None:
    block = {"type": "ultragist", "id": parse_marker(markers[0])}
    odd = {"type": "image", "url": "x"}
    messages = [
        HumanMessage([block, odd, {"type": "text", "text": f"and {markers[1]}?"}], id="h"),
        AIMessage("", tool_calls=[{"name": "find", "args": {"q": "x"}, "id": "1"}]),
        ToolMessage(f"{markers[1]}!", tool_call_id="1"),
    ]
    before = [message.model_copy(deep=True) for message in messages]
    texts = [{"type": "text", "text": TEXTS[0]}, odd, {"type": "text", "text": f"and {TEXTS[1]}?"}]
    expected = [HumanMessage(texts, id="h"), messages[1], ToolMessage("!", tool_call_id="1")]
    assert expand_markers(messages, store) == expected
    assert messages == before
    assert expand_markers(ChatPromptValue(messages=messages), store) == ChatPromptValue(messages=expected)
    assert expand_markers(messages[0], store) == expected[0]


def test_each_document_by_itself(store: GistStore, documents: list[Document]) -> None:
    done = expand_markers([*documents, documents[0]], store)
    assert [(each.page_content, each.id) for each in done] == [(text, text[:4]) for text in (*TEXTS, TEXTS[0])]
    assert [each.metadata for each in done[:2]] == [each.metadata for each in documents]


def test_as_a_step_of_a_chain(store: GistStore, markers: list[str]) -> None:
    step = RunnableLambda(partial(expand_markers, store=store)) | RunnableLambda(str.upper)
    assert step.batch(markers) == [text.upper() for text in TEXTS]


def test_unknown_markers_are_errors_or_text(text_engine: Any, store: GistStore, markers: list[str]) -> None:
    foreign = GistStore.open("memory://", namespace="other")
    forged = "ultragist0" + "b" * 26 + "0"
    for unknown, where in ((forged, store), (markers[0], foreign)):
        with pytest.raises(GistNotFoundError):
            expand_markers(f"read {unknown}", where)
        assert expand_markers(f"read {unknown}", where, unknown="text") == f"read ultragist-{unknown[9:]}"
    assert expand_markers(f"{forged} {markers[0]}", store, unknown="text").endswith(TEXTS[0])


def test_a_scope_holds_here_too(store: GistStore, markers: list[str], text_engine: Any) -> None:
    block = {"type": "ultragist", "id": parse_marker(markers[0])}
    with marker_scope() as scope:
        assert expand_markers(f"read {markers[0]}", store) == f"read ultragist-{markers[0][9:]}"
        assert TEXTS[0] not in str(expand_markers([ToolMessage([block], tool_call_id="1")], store))
        (human,) = expand_markers([HumanMessage([block])], store)
        assert human.text == TEXTS[0]  # an application wrote the block, nobody's text did
        scope.add(markers[1])
        assert expand_markers(f"read {markers[1]}", store) == f"read {TEXTS[1]}"


@pytest.mark.parametrize("value", [3, {"question": "x"}, b"bytes"])
def test_values_without_texts_are_refused(store: GistStore, value: Any) -> None:
    with pytest.raises(InputError, match=type(value).__name__):
        expand_markers(value, store)


def test_cut_markers_and_blocks_without_id_are_refused(store: GistStore, markers: list[str]) -> None:
    with pytest.raises(InputError, match="part of a marker"):
        expand_markers(markers[0][:20], store)
    with pytest.raises(InputError, match="no id"):
        expand_markers(HumanMessage([{"type": "ultragist", "id": 5}]), store)
