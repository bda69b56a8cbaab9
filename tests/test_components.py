"""The fields, alone and mixed into the pydantic classes of both frameworks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ultragist_rag import GistStore, UltraGist
from ultragist_rag.components import CondenseFields, EngineFields, ReadFields
from ultragist_rag.condense import CondensePolicy


@pytest.fixture
def store():
    return GistStore.open("memory://")


def in_frameworks() -> dict[str, Any]:
    from langchain_core.documents import BaseDocumentCompressor
    from langchain_core.language_models import BaseChatModel
    from langchain_core.language_models.llms import BaseLLM
    from llama_index.core.llms import CustomLLM, LLMMetadata
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import TransformComponent

    class LangChainLLM(ReadFields, BaseLLM):
        _llm_type = "test"

        def _generate(self, prompts, **kwargs): ...

    class LangChainChat(ReadFields, BaseChatModel):
        _llm_type = "test"

        def _generate(self, messages, **kwargs): ...

    class LangChainCompressor(CondenseFields, BaseDocumentCompressor):
        def compress_documents(self, documents, query, callbacks=None): ...

    class LlamaIndexLLM(ReadFields, CustomLLM):
        @property
        def metadata(self):
            return LLMMetadata()

        def complete(self, prompt, **kwargs): ...

        def stream_complete(self, prompt, **kwargs): ...

    class LlamaIndexPostprocessor(CondenseFields, BaseNodePostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None): ...

    class LlamaIndexTransform(CondenseFields, TransformComponent):
        def __call__(self, nodes, **kwargs): ...

    classes = (
        LangChainLLM,
        LangChainChat,
        LangChainCompressor,
        LlamaIndexLLM,
        LlamaIndexPostprocessor,
        LlamaIndexTransform,
    )
    return {kind.__name__: kind for kind in classes}


@pytest.fixture(scope="module")
def mixed():
    return in_frameworks()


NAMES = ["LangChainLLM", "LangChainChat", "LangChainCompressor"]
NAMES += ["LlamaIndexLLM", "LlamaIndexPostprocessor", "LlamaIndexTransform"]


@pytest.mark.parametrize("name", NAMES)
def test_store_and_engine_stay_out_of_what_is_shown_and_serialised(mixed, name, store, text_engine):
    component = mixed[name](
        model="some/model", model_kwargs={"token": "secret", "dtype": torch.float32}, store=store, engine=text_engine
    )
    shown = [repr(component), str(component.model_dump())]
    shown += [str(component.to_dict())] if hasattr(component, "to_dict") else []
    for text in shown:
        assert "some/model" in text
        assert "secret" not in text
        assert "GistStore" not in text
        assert "UltraGist object" not in text
    assert component.model_dump()["model_kwargs"] == {"dtype": "torch.float32"}
    assert component.model_kwargs["token"] == "secret"


@pytest.mark.parametrize("name", NAMES)
def test_copies_keep_store_and_engine_and_take_changes(mixed, name, store, text_engine):
    component = mixed[name](store=store, engine=text_engine)
    copied = component.model_copy(update={"model_name": "other"})
    assert (copied.model_name, copied.store, copied._get_engine()) == ("other", store, text_engine)
    assert component.model_name == "bundled"


def test_settings_of_a_langchain_model_can_be_chosen_at_run_time(mixed, store, text_engine):
    from langchain_core.runnables import ConfigurableField

    model = mixed["LangChainChat"](store=store, engine=text_engine, max_tokens=3)
    chosen = model.configurable_fields(store=ConfigurableField(id="store"), temperature=ConfigurableField(id="heat"))
    other = GistStore.open("memory://", namespace="other")
    model, _ = chosen.prepare({"configurable": {"store": other, "heat": 0.5}})
    assert (model.store, model.temperature, model.max_tokens, model.engine) == (other, 0.5, 3, text_engine)


def test_an_engine_is_loaded_at_first_use_and_anew_when_settings_change(monkeypatch):
    class Engine(UltraGist):
        def __init__(self): ...

    loads = []
    monkeypatch.setattr(UltraGist, "from_pretrained", lambda name, **options: loads.append((name, options)) or Engine())
    fields = EngineFields(model="a", model_kwargs={"dtype": "float32"})
    assert loads == []
    engine = fields._get_engine()
    assert fields._get_engine() is engine
    assert EngineFields(model_name="a", model_kwargs={"dtype": "float32"})._get_engine() is engine
    assert fields.model_copy()._get_engine() is engine
    assert loads == [("a", {"dtype": "float32"})]
    assert fields.model_copy(update={"model_name": "b"})._get_engine() is not engine
    assert fields.model_copy(update={"model_kwargs": {}})._get_engine() is not engine


def test_a_policy_is_checked_when_the_component_is_made(store):
    settings = {"slots": 100, "ratios": (2, 4), "min_tokens": 5, "on_miss": "stored", "verbatim": "regex"}
    assert CondenseFields(store=store, **settings)._policy() == CondensePolicy(**settings)
    with pytest.raises(ValueError, match="ratio is 0"):
        CondenseFields(store=store, ratio=0)
    with pytest.raises(ValueError, match="store"):
        CondenseFields()


@pytest.mark.parametrize(
    ("fields", "stop", "call", "expected"),
    [
        ({}, None, {}, {"max_new_tokens": 128, "temperature": 0.0, "do_sample": False}),
        ({"max_new_tokens": 5}, None, {}, {"max_new_tokens": 5, "temperature": 0.0, "do_sample": False}),
        (
            {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "source_bias": 4, "stop": ["a"]},
            None,
            {},
            {
                "max_new_tokens": 128,
                "temperature": 0.5,
                "do_sample": True,
                "top_p": 0.9,
                "top_k": 3,
                "seed": 1,
                "source_bias": 4.0,
                "stop": ["a"],
            },
        ),
        (
            {"temperature": 0.5, "stop": ["a"], "max_tokens": 9},
            ["b"],
            {"temperature": 0, "max_tokens": 2, "repetition_penalty": 1.5, "source_bias": 2.0},
            {
                "max_new_tokens": 2,
                "temperature": 0,
                "do_sample": False,
                "stop": ["b"],
                "repetition_penalty": 1.5,
                "source_bias": 2.0,
            },
        ),
        ({"stop": ["a"]}, [], {"seed": None}, {"max_new_tokens": 128, "temperature": 0.0, "do_sample": False}),
    ],
)
def test_settings_of_a_call_go_before_those_of_the_component(fields, stop, call, expected):
    given = dict(call)
    assert ReadFields(**fields)._decoding(stop, call) == expected
    assert call == given


def test_a_reader_gets_the_settings(store, text_engine):
    fields = ReadFields(store=store, engine=text_engine, max_slots=7, unknown_markers="text", max_waiting=2, timeout=3)
    reader = fields._reader()
    told = SimpleNamespace(**vars(reader))
    assert (told.engine, told.store, told.max_slots, told.unknown_markers) == (text_engine, store, 7, "text")
    assert told._queue == {"max_waiting": 2, "timeout": 3.0}


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"timeout": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ReadFields(**wrong)


@pytest.mark.parametrize("wrong", ["max_token", "stor", "temperatur", "max_new_token"])
def test_misspelt_settings_are_refused_and_foreign_ones_are_not(wrong):
    with pytest.raises(ValueError, match=f"no setting '{wrong}': did you mean"):
        ReadFields(**{wrong: 1})
    assert ReadFields(max_retries=2, max_tokens=3, frequency_penalty=0.1).max_tokens == 3
