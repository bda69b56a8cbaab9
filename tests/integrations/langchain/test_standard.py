"""LangChain's own suites for chat models, as they are: only properties that describe the model are set."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_ultragist import ChatUltraGist
from ultragist_rag import GistStore, UltraGist


@pytest.fixture(scope="module")
def bundled() -> UltraGist:
    """Keep the bundled model for all tests of this file; components find it by its name."""
    from ultragist_rag.shared import shared_engine

    return shared_engine("bundled")


class TestUnit(ChatModelUnitTests):
    """The bundled model, whose chat template has no tools. Nothing is loaded."""

    @property
    def chat_model_class(self) -> type[ChatUltraGist]:
        return ChatUltraGist

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "bundled"}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


class TestUnitWithTools(ChatModelUnitTests):
    """A tiny model whose chat template has tools."""

    @pytest.fixture(autouse=True)
    def _take_engine(self, hermes_engine: Any) -> None:
        self.engine = hermes_engine

    @property
    def chat_model_class(self) -> type[ChatUltraGist]:
        return ChatUltraGist

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}


class TestIntegration(ChatModelIntegrationTests):
    """The bundled model, with a memory for the test that counts what was read from a cache."""

    @pytest.fixture(autouse=True)
    def _take_store(self, bundled: UltraGist) -> None:
        self.store = GistStore.open("memory://")
        (self.marker,) = self.store.get_or_compress(bundled, ["Oslo lies by the sea. It has many parks."])

    @property
    def chat_model_class(self) -> type[ChatUltraGist]:
        return ChatUltraGist

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "bundled", "store": self.store, "max_tokens": 16}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Any]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatUltraGist(**self.chat_model_params)
        question = f"{self.marker} Where does Oslo lie?"
        if not stream:
            return model.invoke(question)
        whole: Any = None
        for chunk in model.stream(question):
            assert isinstance(chunk, AIMessageChunk)
            whole = chunk if whole is None else whole + chunk
        assert isinstance(whole, AIMessage)
        return whole
