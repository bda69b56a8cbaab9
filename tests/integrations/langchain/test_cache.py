"""A cached answer is given only if asking the model again would give it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import BaseMessage

from langchain_ultragist import ChatUltraGist, UltraGistLLM
from ultragist_rag import GistNotFoundError, GistStore, UltraGist
from ultragist_rag.reader import Reader
from ultragist_rag.store import marker_scope

QUESTION = " Question: where?"


@pytest.fixture(autouse=True)
def cache() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture(params=[ChatUltraGist, UltraGistLLM])
def model(request: pytest.FixtureRequest, chat_engine: Any, store: GistStore) -> Any:
    return request.param(engine=chat_engine, store=store, max_tokens=5)


@pytest.fixture
def markers(chat_engine: Any, store: GistStore) -> list[str]:
    return store.get_or_compress(chat_engine, ["Oslo lies by the sea.", "Bergen has much rain, all the year."])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the prompts of each call of the model."""
    calls: list[int] = []
    answer = Reader.answer
    monkeypatch.setattr(
        Reader, "answer", lambda self, batch, **more: (calls.append(len(batch)), answer(self, batch, **more))[1]
    )
    return calls


def text(answer: str | BaseMessage) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


def test_the_same_question_is_asked_once(model: Any, markers: list[str], asked: list[int]) -> None:
    first = model.invoke(markers[0] + QUESTION)
    assert text(model.invoke(markers[0] + QUESTION)) == text(first)
    twin = type(model)(engine=model.engine, store=model.store, max_tokens=5)
    assert text(twin.invoke(markers[0] + QUESTION)) == text(first)
    assert asked == [1]


async def test_async_finds_what_sync_has_cached(model: Any, markers: list[str], asked: list[int]) -> None:
    first = model.invoke(markers[0] + QUESTION)
    assert text(await model.ainvoke(markers[0] + QUESTION)) == text(first)
    assert asked == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 3},
        {"stop": ["e"]},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 1.5, "seed": 2},
        {"temperature": 1.5, "seed": 1, "top_p": 0.2},
        {"temperature": 1.5, "seed": 1, "top_k": 3},
        {"repetition_penalty": 1.5},
        {"source_bias": 1000.0},
    ],
)
def test_settings_of_a_call_make_another_question(model: Any, change: dict[str, Any], asked: list[int]) -> None:
    plain = model.invoke(QUESTION)
    changed = model.invoke(QUESTION, **change)
    assert text(changed) == text(model.model_copy(update={"cache": False}).invoke(QUESTION, **change))
    assert text(model.invoke(QUESTION)) == text(plain)
    assert text(model.invoke(QUESTION, **change)) == text(changed)
    assert len(asked) == 3


def test_settings_of_the_object_make_another_question(model: Any, asked: list[int]) -> None:
    for seed in (1, 2, 1):
        model.model_copy(update={"temperature": 1.5, "seed": seed}).invoke(QUESTION)
    assert len(asked) == 2


def test_another_bias_of_the_model_makes_another_question(
    model: Any, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for bias in (0.0, 1000.0, 0.0):
        monkeypatch.setattr(model.engine, "source_bias", bias)
        assert text(model.invoke(QUESTION)) == text(model.invoke(QUESTION, source_bias=bias))
    assert len(asked) == 4


def test_another_memory_makes_another_question(model: Any, markers: list[str], asked: list[int]) -> None:
    answers = [text(model.invoke(marker + QUESTION)) for marker in markers]
    assert answers == [text(model.model_copy(update={"cache": False}).invoke(marker + QUESTION)) for marker in markers]
    assert len(asked) == 4


def test_draws_without_a_seed_are_never_cached(model: Any, cache: InMemoryCache, asked: list[int]) -> None:
    for _ in range(2):
        model.invoke(QUESTION, temperature=1.5)
        model.model_copy(update={"temperature": 1.5}).invoke(QUESTION)
    assert len(asked) == 4
    assert not cache._cache


def test_a_cache_does_not_answer_for_what_is_gone(model: Any, store: GistStore, markers: list[str]) -> None:
    model.invoke(markers[0] + QUESTION)
    store.delete(markers[0])
    with pytest.raises(GistNotFoundError):
        model.invoke(markers[0] + QUESTION)


def test_a_cache_does_not_answer_another_tenant(model: Any, markers: list[str]) -> None:
    model.invoke(markers[0] + QUESTION)
    for store in (GistStore.open("memory://", namespace="other"), GistStore.open("memory://"), None):
        foreign = model.model_copy(update={"store": store})
        with pytest.raises(GistNotFoundError):
            foreign.invoke(markers[0] + QUESTION)


def test_a_cache_does_not_answer_outside_of_a_scope(model: Any, markers: list[str], asked: list[int]) -> None:
    known = text(model.invoke(markers[0] + QUESTION))
    with marker_scope():
        assert text(model.invoke(markers[0] + QUESTION)) != known
    with marker_scope() as scope:
        scope.add(markers[0])
        assert text(model.invoke(markers[0] + QUESTION)) == known
    assert len(asked) == 2


def test_only_what_is_missing_of_a_batch_is_asked(
    chat_engine: Any, store: GistStore, markers: list[str], asked: list[int]
) -> None:
    llm = UltraGistLLM(engine=chat_engine, store=store, max_tokens=5)
    prompts = [marker + QUESTION for marker in markers]
    first = llm.invoke(prompts[0])
    assert llm.batch(prompts) == [first, llm.model_copy(update={"cache": False}).invoke(prompts[1])]
    assert asked == [1, 1, 1]


def test_a_cache_of_its_own_and_none(model: Any, cache: InMemoryCache, asked: list[int]) -> None:
    own = model.model_copy(update={"cache": InMemoryCache()})
    for _ in range(2):
        own.invoke(QUESTION)
        model.model_copy(update={"cache": False}).invoke(QUESTION)
    assert len(asked) == 3
    assert not cache._cache


def test_a_model_that_is_trained_on_is_another_model(model_folders: Any, asked: list[int]) -> None:
    import torch

    engine = UltraGist.from_pretrained(model_folders[0])
    llm = UltraGistLLM(model="one-name", engine=engine, max_tokens=5)
    llm.invoke(QUESTION)
    with torch.no_grad():
        next(iter(engine.gist_parameters().values())).add_(1)
    llm.invoke(QUESTION)
    other = UltraGistLLM(model="one-name", engine=UltraGist.from_pretrained(model_folders[1]), max_tokens=5)
    assert other._name == llm._name
    uncached = other.model_copy(update={"cache": False})
    assert other.invoke(QUESTION) == uncached.invoke(QUESTION) != llm.invoke(QUESTION)
    assert len(asked) == 4
