"""LangChain's own suite for retrievers, over a `ContextualCompressionRetriever` with our compressor."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import RetrieversIntegrationTests

from langchain_ultragist import UltraGistCompressor
from ultragist_rag import GistStore


class Towns(BaseRetriever):
    """Finds towns."""

    k: int = 3

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        return [Document(f"Town {number} lies by the sea.") for number in range(k or self.k)]


class CompressedTowns(ContextualCompressionRetriever):
    """A retriever whose number of results is set where it is made, as the suite does it."""

    def __init__(self, k: int = 3, **settings: Any) -> None:
        super().__init__(base_retriever=Towns(k=k), **settings)


class TestCompressed(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _take_compressor(self, text_engine: Any) -> None:
        self.compressor = UltraGistCompressor(engine=text_engine, store=GistStore.open("memory://"), slots=60)

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return CompressedTowns

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"base_compressor": self.compressor}

    @property
    def retriever_query_example(self) -> str:
        return "towns by the sea"
