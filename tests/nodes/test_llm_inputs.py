"""The inputs of the LLM node: what of them reaches the gateway, and what is refused before that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.nodes.support import BAD_REQUEST, TOOL, chat_bodies, check_sentence

if TYPE_CHECKING:
    from tests.nodes.support import Llm

MAX_CHARS = 1_000_000
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}


# --- query ---


@pytest.mark.parametrize(
    "query",
    [
        "Why?",
        "  leading and trailing space \n",
        "line one\nline two\r\nline three\ttab",
        "天空为什么是蓝色的？ Ø ü 🐑 e\u0301 \u2028 \u2029",
        '{"json": "as text"}',
        "{{#node.var#}} {{ jinja }} {% raw %}",
        "\x00\x01\x1f\x7f",
        "a" * 20_000,
    ],
    ids=["word", "spaces", "lines", "unicode", "json", "templates", "controls", "long"],
)
def test_query_arrives_as_it_is(llm: Llm, query: str) -> None:
    assert llm.body(query)["messages"] == [{"role": "user", "content": query}]


@pytest.mark.parametrize("on_error", ["fail", "continue"])
@pytest.mark.parametrize(
    "query",
    ["", " ", "\n\t \r\n", "\u00a0\u3000\u2003", None],
    ids=["empty", "space", "lines", "unicode_space", "null"],
)
def test_query_without_content_is_refused(llm: Llm, query: str | None, on_error: str) -> None:
    assert "query" in llm.refusal(query, on_error=on_error)


def test_missing_query_is_refused(llm: Llm) -> None:
    error = llm.plugin.call(TOOL, {}, llm.credentials).error
    assert error is not None
    assert error.type == BAD_REQUEST
    check_sentence(error.message)
    assert "query" in error.message
    assert llm.calls == 0


def test_largest_query_is_sent(llm: Llm) -> None:
    query = "x" * MAX_CHARS
    assert llm.body(query)["messages"][0]["content"] == query


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({"query": "x" * (MAX_CHARS + 1)}, "1,000,001"),
        ({"query": "x" * 600_000, "system_prompt": "y" * 600_000}, "1,200,000"),
        ({"query": "q", "history": [{"role": "user", "content": "z" * MAX_CHARS}]}, "1,000,0"),
        ({"query": "q", "json_schema": '{"title": "' + "z" * MAX_CHARS + '"}'}, "1,000,0"),
        ({"query": "q", "tools": '["' + "z" * MAX_CHARS + '"]'}, "1,000,0"),
    ],
    ids=["query", "with_system_prompt", "with_history", "with_schema", "with_tools"],
)
def test_inputs_above_a_million_characters_are_refused(
    llm: Llm, inputs: dict[str, Any], size: str
) -> None:
    message = llm.refusal(**inputs)
    assert size in message
    assert "1,000,000" in message


def test_query_of_5_mb_is_refused_and_the_process_lives_on(llm: Llm) -> None:
    assert "1,000,000" in llm.refusal("x" * 5_000_000)
    llm.ok()


# --- system_prompt ---


def test_system_prompt_comes_first(llm: Llm) -> None:
    assert llm.body("Why?", system_prompt="Be brief.")["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


@pytest.mark.parametrize("system_prompt", ["", None], ids=["empty", "null"])
def test_empty_system_prompt_is_not_sent(llm: Llm, system_prompt: str | None) -> None:
    body = llm.body("Why?", system_prompt=system_prompt)
    assert body["messages"] == [{"role": "user", "content": "Why?"}]


# --- history ---

TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello to you"},
]
TOOL_TALK = [
    {"role": "user", "content": "How is it in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"town": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
PICTURE_TALK = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ],
    },
    {"role": "assistant", "content": "A sheep", "name": "herder"},
]


@pytest.mark.parametrize(
    "history",
    [TALK, TOOL_TALK, PICTURE_TALK, [{"role": "developer", "content": "Be kind."}]],
    ids=["talk", "tools", "parts", "developer"],
)
def test_history_goes_between_system_prompt_and_query(
    llm: Llm, history: list[dict[str, Any]]
) -> None:
    assert llm.body("Why?", system_prompt="Be brief.", history=history)["messages"] == [
        {"role": "system", "content": "Be brief."},
        *history,
        {"role": "user", "content": "Why?"},
    ]


@pytest.mark.parametrize("history", [[], None, ""], ids=["list", "null", "text"])
def test_empty_history_adds_nothing(llm: Llm, history: Any) -> None:
    assert len(llm.body(history=history)["messages"]) == 1


@pytest.mark.parametrize(
    "history",
    [json.dumps(TALK), [json.dumps(TALK)]],
    ids=["text", "list_of_one_text"],
)
def test_history_as_json_text_is_read(llm: Llm, history: Any) -> None:
    assert llm.body(history=history)["messages"][:2] == TALK


@pytest.mark.parametrize(
    "history",
    [
        ["just text"],
        "just text",
        ["one", "two"],
        [1, 2],
        {"role": "user", "content": "no list"},
        [{"content": "no role"}],
        [{"role": "narrator", "content": "unknown role"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["no part"]}],
        ["[{'role': 'user', 'content': 'python'}]"],
        [[]],
        [None],
        "[",
        "[" * 100_000,
    ],
    ids=[
        "list_of_text",
        "text",
        "texts",
        "numbers",
        "mapping",
        "no_role",
        "unknown_role",
        "no_content",
        "number_as_content",
        "text_as_part",
        "python_repr",
        "list_in_list",
        "null_in_list",
        "broken_json",
        "deep_nesting",
    ],
)
def test_history_that_is_no_list_of_messages_is_refused(llm: Llm, history: Any) -> None:
    assert "history" in llm.refusal(history=history)


# --- tools ---


def test_tools_are_sent_as_given(llm: Llm) -> None:
    assert llm.body(tools=json.dumps([WEATHER]))["tools"] == [WEATHER]


@pytest.mark.parametrize("tools", ["", None], ids=["empty", "null"])
def test_no_tools_are_not_sent(llm: Llm, tools: str | None) -> None:
    assert "tools" not in llm.body(tools=tools)


@pytest.mark.parametrize(
    "tools",
    [
        "get_weather",
        "[",
        "{}",
        '"text"',
        "5",
        '["get_weather"]',
        "[{}]",
        '[{"type": "function"}]',
        '[{"type": "function", "function": {}}]',
        '[{"type": "function", "function": {"name": ""}}]',
        '[{"type": "function", "function": {"name": 5}}]',
        '[{"type": "function", "function": "get_weather"}]',
        '[{"type": "function", "function": {"name": "f", "parameters": []}}]',
        "[" * 100_000,
    ],
    ids=[
        "word",
        "broken_json",
        "object",
        "string",
        "number",
        "list_of_text",
        "empty_tool",
        "no_function",
        "no_name",
        "empty_name",
        "number_as_name",
        "text_as_function",
        "list_as_parameters",
        "deep_nesting",
    ],
)
def test_tools_that_are_no_definitions_are_refused(llm: Llm, tools: str) -> None:
    assert "tools" in llm.refusal(tools=tools)
    llm.ok()


def test_a_tool_call_of_the_model_comes_out(llm: Llm) -> None:
    values = llm.ok("please use a tool", tools=json.dumps([WEATHER])).variables
    (call,) = values["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"]["name"] == "get_weather"
    assert "town" in json.loads(call["function"]["arguments"])
    assert values["finish_reason"] == "tool_calls"


def test_inputs_do_not_leak_into_the_next_call(llm: Llm) -> None:
    llm.ok("one", system_prompt="Be brief.", history=TALK, tools=json.dumps([WEATHER]))
    llm.ok("two")
    first, second = chat_bodies(llm.upstream)
    assert set(first) - set(second) == {"tools"}
    assert second["messages"] == [{"role": "user", "content": "two"}]
