"""Structured answers: JSON Schema and JSON objects, checked before anybody sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from devtools.upstream import behaviours as do
from tests.nodes.support import BAD_REQUEST

if TYPE_CHECKING:
    from tests.nodes.support import Llm

SHEEP: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA = json.dumps(SHEEP)
DOLLY = {"name": "Dolly", "age": 6}
DOLLY_TEXT = json.dumps(DOLLY)
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


def test_schema_is_sent_and_the_answer_comes_parsed(llm: Llm) -> None:
    values = llm.ok("Make up a sheep", json_schema=SCHEMA).variables
    sent = llm.bodies[-1]["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["schema"] == SHEEP
    assert sent["json_schema"]["name"]
    assert set(values["structured"]) == {"name", "age"}
    assert json.loads(values["result"]) == values["structured"]


@pytest.mark.parametrize("response_format", ["text", "json_schema", None, ""])
def test_schema_implies_its_response_format(llm: Llm, response_format: str | None) -> None:
    body = llm.body(json_schema=SCHEMA, response_format=response_format)
    assert body["response_format"]["type"] == "json_schema"


def test_openai_wrapper_round_a_schema_is_understood(llm: Llm) -> None:
    wrapped = {"name": "sheep", "strict": True, "schema": SHEEP}
    body = llm.body(json_schema=json.dumps(wrapped))
    assert body["response_format"]["json_schema"]["schema"] == SHEEP


def test_schema_without_a_type_accepts_any_json(llm: Llm) -> None:
    llm.upstream.script(do.ok("[1]"))
    assert llm.ok(json_schema="{}").variables["structured"] == {"items": [1]}


@pytest.mark.parametrize(
    ("text", "structured"),
    [
        (DOLLY_TEXT, DOLLY),
        (json.dumps(DOLLY, indent=4), DOLLY),
        (f"\n  {DOLLY_TEXT}\n\n", DOLLY),
        (f"```json\n{DOLLY_TEXT}\n```", DOLLY),
        (f"```\n{DOLLY_TEXT}\n```", DOLLY),
        (f"\n```JSON\n{json.dumps(DOLLY, indent=2)}\n```\n", DOLLY),
        (f"```json {DOLLY_TEXT}```", DOLLY),
        (f"```json\r\n{DOLLY_TEXT}\r\n```", DOLLY),
    ],
    ids=[
        "plain",
        "indented",
        "spaces",
        "fence",
        "fence_without_language",
        "fence_in_capitals",
        "fence_on_one_line",
        "fence_with_crlf",
    ],
)
def test_json_is_accepted_with_a_fence_or_without(
    llm: Llm, text: str, structured: dict[str, Any]
) -> None:
    llm.upstream.script(do.ok(text))
    assert llm.ok(json_schema=SCHEMA).variables["structured"] == structured
    assert llm.calls == 1


@pytest.mark.parametrize(
    ("schema", "text", "structured"),
    [
        ({"type": "array", "items": {"type": "integer"}}, "[1, 2]", {"items": [1, 2]}),
        ({"type": "array"}, "[]", {"items": []}),
        ({"type": "object"}, "{}", {}),
    ],
    ids=["array", "empty_array", "empty_object"],
)
def test_top_level_array_comes_as_items(
    llm: Llm, schema: dict[str, Any], text: str, structured: dict[str, Any]
) -> None:
    llm.upstream.script(do.ok(text))
    values = llm.ok(json_schema=json.dumps(schema)).variables
    assert values["structured"] == structured
    assert json.loads(values["result"]) == json.loads(text)


def test_plain_text_has_no_structure_even_if_it_is_json(llm: Llm) -> None:
    llm.upstream.script(do.ok(DOLLY_TEXT))
    assert llm.ok().variables["structured"] == {}


BAD_ANSWERS = {
    "no_json": "I would rather not.",
    "cut_off": DOLLY_TEXT[:-1],
    "breaks_schema": '{"name": "Dolly", "age": "six"}',
    "missing_key": '{"name": "Dolly"}',
    "extra_key": '{"name": "Dolly", "age": 6, "wool": true}',
    "text_round_it": f"Here it is: {DOLLY_TEXT}",
    "array": f"[{DOLLY_TEXT}]",
    "empty": "",
    "nan": '{"name": "Dolly", "age": NaN}',
}


@pytest.mark.parametrize("bad", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_unusable_answer_is_asked_for_once_more(llm: Llm, bad: str) -> None:
    llm.upstream.script(do.ok(bad, usage=USAGE), do.ok(DOLLY_TEXT, usage=USAGE))
    prices = "{my-model: {input: 1, output: 10}}"
    values = (
        llm.like(price_overrides=prices)
        .ok("Make up a sheep", custom_model="my-model", json_schema=SCHEMA)
        .variables
    )
    assert values["structured"] == DOLLY
    assert values["result"] == DOLLY_TEXT
    assert values["meta"]["attempts"] == 2
    assert llm.calls == 2
    # Both answers were paid for: 2 x (100 x 1 + 10 x 10) USD per million.
    assert values["tokens_used"] == 220
    assert values["cost_usd"] == pytest.approx(0.0004)


def test_second_request_shows_the_model_what_was_wrong(llm: Llm) -> None:
    llm.upstream.script(do.ok('{"name": "Dolly"}'), do.ok(DOLLY_TEXT))
    llm.ok("Make up a sheep", json_schema=SCHEMA)
    first, second = llm.bodies
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert "age" in json.dumps(second["messages"][len(first["messages"]) :])
    assert second["response_format"] == first["response_format"]


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ('{"name": "Dolly", "age": "six"}', "age"),
        ('{"name": "Dolly"}', "age"),
        ("no", "JSON"),
    ],
    ids=["wrong_type", "missing", "no_json"],
)
def test_two_unusable_answers_fail_with_the_path_that_broke(llm: Llm, bad: str, where: str) -> None:
    llm.upstream.default(do.ok(bad))
    error = llm.failure(json_schema=SCHEMA)
    assert error.type == BAD_REQUEST
    assert where in error.message
    assert llm.calls == 2
    values = llm.continued(json_schema=SCHEMA).variables
    assert values["error_type"] == "invalid_output"
    assert where in values["error"]
    assert values["meta"]["attempts"] == 2


def test_correction_that_comes_too_late_is_told_with_what_it_was_for(llm: Llm) -> None:
    llm.upstream.script(do.ok('{"name": "Dolly"}'), do.stall("headers", 10))
    error = llm.failure(json_schema=SCHEMA, timeout_s=1, max_retries=0)
    assert "'age' is a required property" in error.message
    assert "deadline" in error.message


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$"])
def test_pattern_that_never_ends_holds_nobody_up(llm: Llm, pattern: str) -> None:
    llm.upstream.default(do.ok(json.dumps({"name": "a" * 28 + "!"})))
    schema = {"properties": {"name": {"type": "string", "pattern": pattern}}}
    result = llm.start(json_schema=json.dumps(schema)).result()
    assert result.error is not None
    llm.check_error(result.error)
    assert "$.name" in result.error.message or "too long to check" in result.error.message
    assert result.elapsed_ms < 3000


@pytest.mark.parametrize(
    "extra",
    [
        {"discriminator": {"propertyName": "name"}},
        {"example": DOLLY},
        {"propertyOrdering": ["name", "age"]},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://example.com/sheep"},
    ],
    ids=["pydantic", "openapi", "gemini", "draft_7", "draft_4"],
)
def test_schema_in_other_dialects_is_sent_as_it_is(llm: Llm, extra: dict[str, Any]) -> None:
    schema = SHEEP | extra
    llm.upstream.script(do.ok('{"name": "Dolly"}'), do.ok(DOLLY_TEXT))
    assert llm.ok(json_schema=json.dumps(schema)).variables["structured"] == DOLLY
    assert llm.bodies[-1]["response_format"]["json_schema"]["schema"] == schema
    assert llm.calls == 2


def test_path_of_a_nested_problem_is_told(llm: Llm) -> None:
    flock = {"type": "object", "properties": {"sheep": {"type": "array", "items": SHEEP}}}
    llm.upstream.default(do.ok('{"sheep": [{"name": "a", "age": 1}, {"name": "b", "age": -1}]}'))
    message = llm.failure(json_schema=json.dumps(flock)).message
    assert "sheep" in message
    assert "1" in message
    assert "age" in message


def test_unusable_answer_is_never_cached_nor_shown(llm: Llm) -> None:
    llm.upstream.script(do.ok("bad one"), do.ok("bad two"), do.ok(DOLLY_TEXT))
    failed = llm.start(json_schema=SCHEMA).result()
    assert failed.error is not None
    assert failed.text == ""
    assert llm.ok(json_schema=SCHEMA).variables["meta"]["cache"] == "miss"
    assert llm.ok(json_schema=SCHEMA).variables["meta"]["cache"] == "hit"
    assert llm.calls == 3


def test_corrected_answer_is_cached_for_the_question(llm: Llm) -> None:
    llm.upstream.script(do.ok("bad one"), do.ok(DOLLY_TEXT))
    llm.ok(json_schema=SCHEMA)
    again = llm.ok(json_schema=SCHEMA).variables
    assert again["meta"]["cache"] == "hit"
    assert again["structured"] == DOLLY
    assert llm.calls == 2


def test_a_change_of_schema_is_another_question(llm: Llm) -> None:
    llm.ok(json_schema=SCHEMA)
    other = llm.ok(json_schema=json.dumps(SHEEP | {"title": "Sheep"}))
    assert other.variables["meta"]["cache"] == "miss"


def test_changing_a_structured_output_does_not_change_the_cache(llm: Llm) -> None:
    first = llm.ok(json_schema=SCHEMA).variables["structured"]
    assert llm.ok(json_schema=SCHEMA).variables["structured"] == first


@pytest.mark.parametrize(
    "schema",
    [
        "{",
        "not json",
        "[]",
        '"text"',
        "5",
        "true",
        '{"type": "objekt"}',
        '{"type": 5}',
        '{"properties": []}',
        '{"required": "name"}',
        '{"type": "object", "propertys": {}}',
        '{"properties": {"a": {"typ": "string"}}}',
        '{"$ref": "https://example.com/schema.json"}',
        '{"properties": {"a": {"$ref": "http://127.0.0.1:1/other.json#/a"}}}',
        '{"$ref": "file:///etc/hosts"}',
        '{"$ref": "#/$defs/missing"}',
        '{"pattern": "("}',
        '{"properties": ' * 50_000,
    ],
    ids=[
        "broken",
        "no_json",
        "list",
        "text",
        "number",
        "true",
        "unknown_type",
        "number_as_type",
        "list_as_properties",
        "text_as_required",
        "unknown_keyword",
        "unknown_keyword_inside",
        "remote_ref",
        "remote_ref_inside",
        "file_ref",
        "ref_to_nothing",
        "broken_pattern",
        "deep_nesting",
    ],
)
def test_schema_that_cannot_be_used_is_refused(llm: Llm, schema: str) -> None:
    assert "json_schema" in llm.refusal(json_schema=schema)


@pytest.mark.parametrize("json_schema", ["", None, "  "], ids=["empty", "null", "space"])
def test_empty_schema_is_not_set(llm: Llm, json_schema: str | None) -> None:
    assert "response_format" not in llm.body(json_schema=json_schema)


def test_json_schema_format_without_a_schema_is_refused(llm: Llm) -> None:
    assert "json_schema" in llm.refusal(response_format="json_schema")


def test_local_references_are_followed(llm: Llm) -> None:
    schema = {"$defs": {"age": {"type": "integer"}}, "properties": {"age": {"$ref": "#/$defs/age"}}}
    llm.upstream.script(do.ok('{"age": "six"}'), do.ok('{"age": 6}'))
    assert llm.ok(json_schema=json.dumps(schema)).variables["structured"] == {"age": 6}
    assert llm.calls == 2


def test_schema_that_refers_to_itself_without_end_does_not_hang(llm: Llm) -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    llm.upstream.default(do.ok(DOLLY_TEXT))
    result = llm.start(json_schema=json.dumps(schema)).result(timeout_s=10)
    assert result.error is not None
    llm.check_error(result.error)
    llm.ok()


# --- response_format ---


def test_json_object_is_asked_for_and_parsed(llm: Llm) -> None:
    llm.upstream.script(do.ok(DOLLY_TEXT))
    values = llm.ok("Answer in JSON", response_format="json_object").variables
    assert llm.bodies[-1]["response_format"] == {"type": "json_object"}
    assert values["structured"] == DOLLY


def test_json_object_that_is_no_json_is_asked_for_once_more(llm: Llm) -> None:
    llm.upstream.script(do.ok("no"), do.ok(f"```json\n{DOLLY_TEXT}\n```"))
    assert llm.ok(response_format="json_object").variables["structured"] == DOLLY
    assert llm.calls == 2


@pytest.mark.parametrize("response_format", ["text", "", None], ids=["text", "empty", "null"])
def test_text_asks_for_no_format(llm: Llm, response_format: str | None) -> None:
    assert "response_format" not in llm.body(response_format=response_format)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_word_that_only_python_reads_as_a_number_is_no_json(llm: Llm, word: str) -> None:
    llm.upstream.script(do.ok(f'{{"age": {word}}}'), do.ok(DOLLY_TEXT))
    assert llm.ok(response_format="json_object").variables["structured"] == DOLLY
    assert llm.calls == 2


@pytest.mark.parametrize(
    "text",
    ['{"a": ' * 50_000, "[" * 50_000, '{"a": 1' + "0" * 5_000 + "}"],
    ids=["deep_object", "deep_array", "huge_number"],
)
def test_json_that_no_parser_takes_fails_in_one_sentence(llm: Llm, text: str) -> None:
    llm.upstream.default(do.ok(text))
    assert llm.failure(response_format="json_object").type == BAD_REQUEST
    llm.upstream.default(None)
    llm.ok("the process lives on")


def test_tool_call_instead_of_json_is_an_answer(llm: Llm) -> None:
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    call = do.tool_call("look_up", {"name": "Dolly"}, "call_1")
    llm.upstream.script(do.ok(tool_calls=[call]))
    values = llm.ok(json_schema=SCHEMA, tools=json.dumps(tools)).variables
    assert values["structured"] == {}
    assert values["tool_calls"][0]["function"]["name"] == "look_up"
    assert llm.calls == 1


def test_large_structured_answer_fits_or_fails_in_one_sentence(llm: Llm) -> None:
    numbers = "[" + ",".join(["1234567"] * 700_000) + "]"
    llm.upstream.script(do.ok(numbers))
    result = llm.start(response_format="json_object").result()
    if result.error is None:
        assert len(result.variables["structured"]["items"]) == 700_000
    else:
        llm.check_error(result.error)
    llm.ok("the process lives on")
