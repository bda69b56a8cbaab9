import pytest

from ultragist_rag.tools import TOOL_NAME, parse_tool_calls


def parsed(text):
    rest, calls, invalid = parse_tool_calls(text)
    return rest, [(call.name, call.arguments) for call in calls], [one.text for one in invalid]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', ("", [("f", {"x": 1})], []), id="hermes"
        ),
        pytest.param(
            'First.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g"}</tool_call> Then.',
            ("First.\n\n Then.", [("f", {}), ("g", {})], []),
            id="two with text around",
        ),
        pytest.param('<tool_call>{"name": "f", "arguments": {}}', ("", [("f", {})], []), id="not closed"),
        pytest.param(
            '<tool_call>{"name": "f"}<tool_call>{"name": "g"}</tool_call>',
            ("", [("f", {}), ("g", {})], []),
            id="run on",
        ),
        pytest.param(
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
            ("", [("f", {"x": "</tool_call>"})], []),
            id="end tag within a string",
        ),
        pytest.param(
            '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
            ("", [("f", {"x": 1})], []),
            id="arguments as text",
        ),
        pytest.param('{"name": "f", "parameters": {"x": [1]}}', ("", [("f", {"x": [1]})], []), id="llama"),
        pytest.param(
            '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
            ("", [("f", {}), ("g", {})], []),
            id="llama with a tag and two calls",
        ),
        pytest.param(
            '{"type": "function", "name": "f", "parameters": {}}', ("", [("f", {})], []), id="llama with a type"
        ),
        pytest.param(
            '{"name": "f", "parameters": {}}\nLet me wait.', ("Let me wait.", [("f", {})], []), id="text behind"
        ),
    ],
)
def test_calls_of_both_styles_are_read(text, expected):
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "",
        '{"name": "Bob", "age": 3}',
        '{"type": "circle"}',
        'a list: [{"name": "f", "arguments": {}}]',
        'It is {"name": "f", "parameters": {}}',
    ],
)
def test_answers_that_are_no_calls_stay_text(text):
    assert parse_tool_calls(text) == (text, [], [])


@pytest.mark.parametrize(
    ("text", "rest", "invalid"),
    [
        ('<tool_call>{"name": "f", "arguments": {</tool_call> ok', "ok", '{"name": "f", "arguments": {'),
        ("<tool_call>", "", ""),
        ('<tool_call>{"name": "f"} and more</tool_call>', "", '{"name": "f"} and more'),
        ("<tool_call>[1]</tool_call>", "", "[1]"),
        ('<tool_call>{"name": "f<|im_end|>"}</tool_call>', "", '{"name": "f<|im_end|>"}'),
        ('<tool_call>{"name": 3}</tool_call>', "", '{"name": 3}'),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "", '{"name": "f", "arguments": [1]}'),
        ('<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "", '{"name": "f", "arguments": "{"}'),
        ('{"name": "f", "parameters": {"x": ', "", '{"name": "f", "parameters": {"x":'),
        ("<|python_tag|>print(1)", "", "print(1)"),
        ("<tool_call>" + "[" * 100_000, "", "[" * 100_000),
        ('<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>", "", None),
    ],
)
def test_broken_calls_are_told_and_never_raised(text, rest, invalid):
    left, calls, broken = parse_tool_calls(text)
    assert (left, calls, len(broken)) == (rest, [], 1)
    assert invalid is None or broken[0].text == invalid
    assert broken[0].error


def test_a_broken_call_does_not_hide_the_next_one():
    text = '<tool_call>{"name": </tool_call><tool_call>{"name": "g", "arguments": {}}</tool_call>'
    assert parsed(text) == ("", [("g", {})], ['{"name":'])


def test_every_call_has_an_id_of_its_own_that_all_templates_take():
    _, calls, _ = parse_tool_calls('<tool_call>{"name": "f"}</tool_call>' * 2)
    ids = [call.id for call in calls]
    assert len(set(ids)) == 2
    assert all(len(one) == 9 and one.isalnum() and TOOL_NAME.fullmatch(one) for one in ids)
