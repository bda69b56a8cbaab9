"""Everything of LlamaIndex that writes prompts shows the model memories and everybody else texts."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.tools import RetrieverTool

from llama_index_ultragist import UltraGistLLM, UltraGistPostprocessor, slot_tokenizer
from ultragist_rag import GistStore, InputError

MODES = {
    "refine": [1, 1],
    "compact": [2],
    "tree_summarize": [2],
    "simple_summarize": [2],
    "accumulate": [1, 1],
    "compact_accumulate": [2],
}
"""Memories in each prompt, for two nodes."""


def query_engine(llm: Any, postprocessor: Any, retriever: Any, **settings: Any) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(retriever, llm=llm, node_postprocessors=[postprocessor], **settings)


@pytest.mark.parametrize("mode", MODES)
def test_prompts_hold_memories_and_sources_texts(
    llm: Any, postprocessor: Any, retriever: Any, prompts: Any, texts: list[str], mode: Any
) -> None:
    response = query_engine(llm, postprocessor, retriever, response_mode=mode).query("Where is it wet?")
    assert [len(prompt.memories) for prompt in prompts] == MODES[mode]
    lengths = {memory.progress.tokens for prompt in prompts for memory in prompt.memories}
    assert lengths == {len(text) for text in texts}  # one token per byte
    assert all("Where is it wet?" in prompt.text for prompt in prompts)
    assert not any(text in prompt.text or "ultragist" in prompt.text for prompt in prompts for text in texts)
    assert [item.text for item in response.source_nodes] == texts


def test_model_without_chat_template_gets_one_text(
    text_engine: Any, store: GistStore, retriever: Any, prompts: Any, texts: list[str]
) -> None:
    llm = UltraGistLLM(engine=text_engine, store=store, max_tokens=2)
    postprocessor = UltraGistPostprocessor(engine=text_engine, store=store)
    response = query_engine(llm, postprocessor, retriever).query("Where?")
    (prompt,) = prompts
    assert prompt.text.index("{}") < prompt.text.index("Query: Where?")
    assert len(prompt.memories) == 2
    assert [item.text for item in response.source_nodes] == texts


async def test_async_and_streams_read_the_same(llm: Any, postprocessor: Any, retriever: Any, prompts: Any) -> None:
    engine = query_engine(llm, postprocessor, retriever)
    streamed = query_engine(llm, postprocessor, retriever, streaming=True)
    answers = [
        str(engine.query("Where?")),
        str(await engine.aquery("Where?")),
        "".join(streamed.query("Where?").response_gen),  # type: ignore[union-attr]
    ]
    parts = await streamed.aquery("Where?")
    answers.append("".join([part async for part in parts.async_response_gen()]))  # type: ignore[union-attr]
    assert len(set(answers)) == 1
    assert len({prompt.text for prompt in prompts}) == 1
    assert [len(prompt.memories) for prompt in prompts] == [2] * 4


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines(
    llm: Any, postprocessor: Any, retriever: Any, make_memory: Any, prompts: Any, texts: list[str], kind: Any
) -> None:
    memory = make_memory(token_limit=2000, tokenizer_fn=slot_tokenizer(llm))
    engine = kind.from_defaults(retriever=retriever, llm=llm, memory=memory, node_postprocessors=[postprocessor])
    first = engine.chat("Where is it wet?")
    second = await engine.achat("And dry?")
    stream = engine.stream_chat("And cold?")
    assert "".join(stream.response_gen) == stream.response
    asked = [prompt for prompt in prompts if prompt.memories]
    assert [len(prompt.memories) for prompt in asked] == [2, 2, 2]
    assert not any(text in prompt.text for prompt in prompts for text in texts)
    assert [item.text for item in first.source_nodes] == [item.text for item in second.source_nodes] == texts


def test_citation_engine_reads_plain_text_unless_told_otherwise(
    llm: Any, postprocessor: Any, retriever: Any, prompts: Any, texts: list[str]
) -> None:
    for mode, n_memories in ((MetadataMode.NONE, 0), (MetadataMode.LLM, 2)):
        engine = CitationQueryEngine(retriever, llm=llm, node_postprocessors=[postprocessor], metadata_mode=mode)
        response = engine.query("Where?")
        prompt = prompts.pop()
        assert [f"Source {number}:" in prompt.text for number in (1, 2)] == [True, True]
        assert len(prompt.memories) == n_memories
        assert [text in prompt.text for text in texts] == [not n_memories] * 2
        assert len(response.source_nodes) == 2


def test_retriever_tool_gives_markers_that_a_tool_message_may_hold(
    llm: Any, postprocessor: Any, retriever: Any, prompts: Any, texts: list[str]
) -> None:
    tool = RetrieverTool.from_defaults(retriever, node_postprocessors=[postprocessor])
    output = tool.call("Where?")
    assert not any(text in output.content for text in texts)
    assert [item.text for item in output.raw_output] == texts
    messages = [ChatMessage("Where?"), ChatMessage(output.content, role="tool")]
    llm.chat(messages)
    assert len(prompts[-1].memories) == 2


async def test_evaluators_read_the_texts(llm: Any, postprocessor: Any, retriever: Any, texts: list[str]) -> None:
    response = query_engine(llm, postprocessor, retriever).query("Where?")
    judge = FaithfulnessEvaluator(llm=MockLLM())  # repeats its prompt
    judged = await judge.aevaluate_response(response=response)
    assert judged.contexts == texts
    assert [text in judged.feedback for text in texts] == [True, True]


def pack(llm: Any, nodes: Any, room: int) -> None:
    """Ask about nodes where the context of a prompt may take so much room."""
    template = "{context_str}\nQ: {query_str}"
    helper = PromptHelper(room + len("\nQ: Q?") + 5 + 2, 2, tokenizer=slot_tokenizer(llm), chunk_overlap_ratio=0.5)
    get_response_synthesizer(
        response_mode=ResponseMode.COMPACT_ACCUMULATE,
        llm=llm,
        prompt_helper=helper,
        text_qa_template=PromptTemplate(template),
    ).synthesize("Q?", nodes)


def test_packing_by_slots_cuts_between_markers(llm: Any, postprocessor: Any, retriever_of: Any, prompts: Any) -> None:
    texts = [f"{number} {'rain and sea. ' * 12}" for number in range(6)]
    nodes = postprocessor.postprocess_nodes(retriever_of([TextNode(text=text) for text in texts]).retrieve(""))
    n_slots = llm.store.get(nodes[0].node.marker).slots
    pack(llm, nodes, room=n_slots * 5 // 2)
    counts = [len(prompt.memories) for prompt in prompts]
    assert max(counts) == 2
    assert sum(counts) > len(texts)  # overlap repeats some
    assert len({memory.values[-1].sum().item() for prompt in prompts for memory in prompt.memories}) == len(texts)
    assert not any("ultragist" in prompt.text for prompt in prompts)
    with pytest.raises(InputError, match="splitter"):
        pack(llm, nodes, room=n_slots // 2)


def test_half_a_marker_is_refused(llm: Any, postprocessor: Any, retriever: Any, prompts: Any) -> None:
    marker = postprocessor.postprocess_nodes(retriever.retrieve("Q?"))[0].node.marker
    for cut in (marker[:20], marker[5:], f"{marker} and {marker[5:]}"):
        with pytest.raises(InputError, match="splitter"):
            llm.complete(f"Read {cut} and say why.")
        with pytest.raises(InputError, match="splitter"):
            llm.chat([ChatMessage(f"Read {cut}", role="system"), ChatMessage("Why?")])
    assert prompts == []


def test_a_marker_that_was_wrapped_or_repeated_is_read_once(
    llm: Any, postprocessor: Any, retriever: Any, prompts: Any
) -> None:
    marker = postprocessor.postprocess_nodes(retriever.retrieve("Q?"))[0].node.marker
    wrapped = f"{marker[:20]}\n{marker[20:]}"
    for text in (f"{marker} {marker.upper()}", f"{wrapped} {marker}", repr([marker, wrapped])):
        llm.complete(f"Read {text} and say why.")
        assert len(prompts[-1].memories) == 1
        assert marker[12:] not in prompts[-1].text.lower()
