"""Conversations that a template does not take as they are."""

import pytest
from asking import asking_engine
from plain import random_memory
from templates import DROPS_SYSTEM, GEMMA, MARKUP, MISTRAL
from test_chat import LLAMA2, decoded, joined
from test_chat_tools import as_openai, conversation
from tokenizers_of_our_own import CHATML, byte_level

from ultragist_rag.errors import InputError
from ultragist_rag.memory.memory import GistMemory
from ultragist_rag.memory.pieces import to_prompt
from ultragist_rag.memory.roles import render_fitting

SYSTEM = {"role": "system", "content": ["answer: the fox"]}
USERS = [{"role": "user", "content": ["the quick"]}, {"role": "user", "content": ["brown fox"]}]


def message(role, content):
    return {"role": role, "content": content}


def make_tokenizer(template):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKUP})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param(
            CHATML,
            [message("system", "answer: the fox"), message("user", "the quick"), message("user", "brown fox")],
            id="as it is",
        ),
        pytest.param(
            MISTRAL,
            [message("system", "answer: the fox"), message("user", "the quick\n\nbrown fox")],
            id="alternating",
        ),
        pytest.param(GEMMA, [message("user", "answer: the fox\n\nthe quick\n\nbrown fox")], id="no system role"),
        pytest.param(
            DROPS_SYSTEM, [message("user", "answer: the fox\n\nthe quick\n\nbrown fox")], id="system left out"
        ),
    ],
)
def test_a_conversation_is_bent_no_more_than_needed(template, expected):
    tokenizer = make_tokenizer(template)
    text = decoded(tokenizer, joined(render_fitting(tokenizer, [SYSTEM, *USERS])))
    assert text == tokenizer.apply_chat_template(expected, add_generation_prompt=True, tokenize=False)


def test_several_system_messages_and_one_without_user():
    tokenizer = make_tokenizer(GEMMA)
    late = [USERS[0], message("assistant", "yes"), message("system", "be brief"), USERS[1]]
    bent = [message("user", "be brief\n\nthe quick"), message("assistant", "yes"), message("user", "brown fox")]
    for given, expected in ((late, bent), ([SYSTEM], [message("user", "answer: the fox")])):
        text = decoded(tokenizer, joined(render_fitting(tokenizer, given)))
        assert text == tokenizer.apply_chat_template(expected, add_generation_prompt=True, tokenize=False)


def test_memories_of_a_system_message_move_with_its_text():
    engine = asking_engine()
    memories = [random_memory(engine.attachment.model, n, n) for n in (3, 4)]
    messages = [message("system", ["read ", memories[0]]), message("user", [memories[1], " and answer"])]
    tokenizer = make_tokenizer(GEMMA)
    pieces = render_fitting(tokenizer, messages)
    assert [piece for piece in pieces if isinstance(piece, GistMemory)] == memories
    assert "user\nread \n\n and answer<end_of_turn>" in decoded(tokenizer, joined(pieces))


def test_calls_and_results_stay_together_and_get_ids_that_the_template_takes():
    tokenizer = make_tokenizer(MISTRAL)
    messages = conversation(arguments={"city": "Manama"})[1:]
    messages.insert(4, message("assistant", "let me say"))
    messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "call_0123456789-abc"
    text = decoded(tokenizer, joined(render_fitting(tokenizer, messages)))
    short = text.split('"id": "')[1][:9]
    assert text.count(short) == 2
    expected = conversation(arguments={"city": "Manama"})[1:]
    expected[1]["tool_calls"][0]["id"] = expected[2]["tool_call_id"] = short
    expected[3]["content"] = "30 degrees\n\nlet me say"
    assert text == tokenizer.apply_chat_template([as_openai(one) for one in expected], tokenize=False)
    assert messages[1]["tool_calls"][0]["id"] == "call_0123456789-abc"  # the caller's own are not changed


def test_what_fits_in_no_form_is_refused_with_what_the_template_says():
    with pytest.raises(InputError, match="System role not supported"):
        render_fitting(make_tokenizer(GEMMA), [SYSTEM, message("assistant", "yes")] * 2 + [message("tool", "x")])


@pytest.mark.parametrize(("template", "writes_one"), [(CHATML, False), (LLAMA2.replace("[INST]", "Q"), True)])
def test_the_lead_token_stands_once_whether_or_not_the_template_writes_it(template, writes_one):
    engine = asking_engine()
    engine.tokenizer = make_tokenizer(template)
    memory = random_memory(engine.attachment.model, 3, lead_token=1)
    with_memory = joined(to_prompt(engine, render_fitting(engine.tokenizer, [message("user", [memory, "the fox"])])))
    assert with_memory.count(1) == 1
    assert with_memory[0] == 1
    without = joined(to_prompt(engine, render_fitting(engine.tokenizer, [message("user", "the fox")])))
    assert without.count(1) == int(writes_one)
