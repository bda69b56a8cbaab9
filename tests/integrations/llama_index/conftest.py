"""A model with a chat template, and a look at what the model is given to read."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core.memory import Memory
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from torch import Tensor

from llama_index_ultragist import UltraGistLLM, UltraGistPostprocessor
from ultragist_rag import GistMemory, GistStore, UltraGist
from ultragist_rag.reader import Reader
from ultragist_rag.testing import randomise, tiny_model

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}<|end|>\n"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def loop_for_synchronous_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some synchronous calls of LlamaIndex take the thread's event loop, or make one that nobody closes."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def chat_engine(text_engine: Any) -> UltraGist:
    tokenizer = copy.deepcopy(text_engine.tokenizer)
    tokenizer.chat_template = TEMPLATE
    model = tiny_model(seed=3, vocab_size=len(tokenizer), max_position_embeddings=4096)
    engine = UltraGist.attach(model, tokenizer, text_engine.config)
    randomise(engine.gist_parameters().items(), 4)
    return engine


@pytest.fixture
def store() -> GistStore:
    return GistStore.open("memory://")


@pytest.fixture
def llm(chat_engine: UltraGist, store: GistStore) -> UltraGistLLM:
    return UltraGistLLM(engine=chat_engine, store=store, max_tokens=2)


@pytest.fixture
def postprocessor(chat_engine: UltraGist, store: GistStore) -> UltraGistPostprocessor:
    return UltraGistPostprocessor(engine=chat_engine, store=store, ratio=4)


@dataclass(frozen=True)
class Prompt:
    """What the model was given: the text, with `{}` in the places of memories, and these."""

    text: str
    memories: list[GistMemory]
    n_special: int

    @classmethod
    def of(cls, pieces: Sequence[Any], tokenizer: Any) -> Prompt:
        ids = [number for piece in pieces if isinstance(piece, Tensor) for number in piece.tolist()]
        shown = [
            "{}" if isinstance(one, GistMemory) else one if isinstance(one, str) else tokenizer.decode(one)
            for one in pieces
        ]
        memories = [piece for piece in pieces if isinstance(piece, GistMemory)]
        return cls("".join(shown), memories, sum(number in tokenizer.all_special_ids for number in ids))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """What the reader is asked to answer, in order."""
    seen: list[Prompt] = []
    answer, stream = Reader.answer, Reader.stream

    def answered(self: Reader, batch: Any, **settings: Any) -> Any:
        seen.extend(Prompt.of(pieces, self.engine.tokenizer) for pieces in batch)
        return answer(self, batch, **settings)

    def streamed(self: Reader, pieces: Any, **settings: Any) -> Any:
        seen.append(Prompt.of(pieces, self.engine.tokenizer))
        return stream(self, pieces, **settings)

    monkeypatch.setattr(Reader, "answer", answered)
    monkeypatch.setattr(Reader, "stream", streamed)
    return seen


class FixedRetriever(BaseRetriever):
    """Finds the same nodes whatever the question is."""

    def __init__(self, nodes: Sequence[TextNode]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=node, score=1 / rank) for rank, node in enumerate(self._nodes, 1)]


@pytest.fixture
async def make_memory() -> AsyncIterator[Callable[..., Memory]]:
    """Make memories whose data bases are closed at the end."""
    made: list[Memory] = []

    def make(**settings: Any) -> Memory:
        made.append(Memory.from_defaults(**settings))
        return made[-1]

    yield make
    for memory in made:
        if memory.sql_store._async_engine is not None:  # type: ignore[attr-defined]
            await memory.sql_store._async_engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture
def texts() -> list[str]:
    return ["Oslo lies by the sea, at the end of a long fjord.", "Bergen has much rain, all the year round."]


@pytest.fixture
def retriever(texts: list[str]) -> FixedRetriever:
    return FixedRetriever([TextNode(text=text, id_=str(place)) for place, text in enumerate(texts)])


@pytest.fixture
def retriever_of() -> type[FixedRetriever]:
    return FixedRetriever
