"""Answers that must be JSON: read, checked, asked for once more, and never shown when wrong."""

import contextlib
import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.errors import (
    BadRequest,
    ConnectFailed,
    DeadlineExceeded,
    HolySheepError,
    InvalidOutput,
    RateLimited,
    ServerError,
    TimedOut,
    UnknownModel,
)
from holysheep.schema import check_schema
from holysheep.structured import StructuredLayer, check_answer, parse_answer
from holysheep.types import Choice, Completed, Completion, Delta, Usage
from tests.engine.test_types import json_values
from tests.fakes import (
    OneLayer,
    ScriptedHandler,
    Timeline,
    a_request,
    answered,
    class_name,
    text_of,
)

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
}


def saying(text: str, **fields: Any) -> list[Timeline]:
    """An answer in one piece, whatever white space is in it."""
    finish_reason = fields.pop("finish_reason", "stop")
    tool_calls = fields.pop("tool_calls", ())
    fields = {"usage": Usage(prompt_tokens=10, completion_tokens=5), **fields}
    choice = Choice(text=text, finish_reason=finish_reason, tool_calls=tool_calls)
    completion = Completion("gpt-4.1", "gpt-4.1-2025", (choice,), **fields)
    return [Delta(text), Completed(completion)]


# --- reading ------------------------------------------------------------------------------------


@given(value=json_values)
def test_every_json_value_is_read_as_it_is(value: Any) -> None:
    assert parse_answer(json.dumps(value)) == value


@given(value=json_values, language=st.sampled_from(["", "json", "JSON", "json5"]))
def test_a_code_fence_round_the_value_is_accepted(value: Any, language: str) -> None:
    text = f"\n```{language}\n{json.dumps(value, indent=2)}\n```\n"
    assert parse_answer(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sorry, I cannot.",
        '{"a": 1',
        '{"a": 1} and more',
        "{'a': 1}",
        '{"a": NaN}',
        "[Infinity]",
        "-Infinity",
        "[" * 100_000,
        "[" * 5000 + "]" * 5000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        "9" * 5000,
        "```json\n{",
        "\ufeff{}x",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parse_answer(text)


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + "\n" * 1200 + "x",
        "```" + " \n" * 600 + "x",
        "```json\n{" + " " * 10_000,
        "```json\n" + "```" * 5000,
        " " * 50_000 + "{",
    ],
    ids=["empty lines", "blank lines", "spaces", "fences", "indent"],
)
def test_an_answer_of_endless_white_space_is_read_in_no_time(text: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(ValueError, match="not JSON"):
        parse_answer(text)
    assert time.perf_counter() - began_s < 0.2


@pytest.mark.parametrize("depth", [20, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980])
@pytest.mark.parametrize("schema", [{}, PERSON, {"items": True}], ids=["any", "object", "items"])
def test_an_answer_of_any_depth_is_refused_or_can_be_used(depth: int, schema: Any) -> None:
    text = "[" * depth + "]" * depth
    with contextlib.suppress(ValueError):
        check_answer(text, schema)
        assert json.dumps(parse_answer(text)) == text


def test_a_value_that_breaks_the_schema_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"\$\.age: -1 is less than"):
        check_answer('{"name": "Ada", "age": -1}', PERSON)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$dynamicRef": "https://example.com/other"},
        {"$dynamicRef": "#nowhere"},
        {
            "$id": "http://one/",
            "properties": {"x": {"$id": "http://two/", "$ref": "#/definitions/foo"}},
            "definitions": {"foo": {}},
        },
        {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
    ],
    ids=["loop", "foreign dynamic", "missing dynamic", "other base", "broken pattern"],
)
def test_a_schema_that_passes_the_check_never_fails_in_the_use(schema: dict[str, Any]) -> None:
    try:
        check_schema(schema)
    except HolySheepError:
        return
    for text in ('{"x": "a"}', "1"):
        with contextlib.suppress(ValueError):
            check_answer(text, schema)


# --- the layer ----------------------------------------------------------------------------------


def ask(*behaviours: Any, schema: Any = PERSON, **fields: Any) -> tuple[list[Any], ScriptedHandler]:
    structured = OneLayer(lambda _: StructuredLayer(), *behaviours)
    events = structured.events(a_request(**fields), answer_schema=schema)
    return list(events), structured.below


def test_without_a_schema_everything_passes_through_as_it_arrives() -> None:
    events, _ = ask(answered("a b c"), schema=None)
    assert [event.text for event in events[:-1]] == ["a", " b", " c"]


def test_a_good_answer_comes_in_one_piece() -> None:
    events, handler = ask(saying('{"name": "Ada"}'))
    assert events[0] == Delta('{"name": "Ada"}', is_last=True)
    assert events[-1].completion.first.text == '{"name": "Ada"}'
    assert len(handler.calls) == 1


def test_nothing_of_a_wrong_answer_is_ever_passed_on() -> None:
    events, _ = ask(saying("I think it is Ada"), saying('{"name": "Ada"}'))
    assert text_of(events) == '{"name": "Ada"}'


@pytest.mark.parametrize("wrong", ["no JSON", "[]", '{"age": 3}', '{"name": 1}'])
def test_a_wrong_answer_is_asked_for_once_more_with_what_was_wrong(wrong: str) -> None:
    events, handler = ask(saying(wrong), saying('{"name": "Ada"}'))
    assert events[-1].completion.first.text == '{"name": "Ada"}'
    first, second = (call.request.body["messages"] for call in handler.calls)
    assert second[: len(first)] == first
    assert second[-2] == {"role": "assistant", "content": wrong}
    assert "cannot be used" in second[-1]["content"]


def test_a_second_wrong_answer_fails_with_the_place_that_broke() -> None:
    with pytest.raises(InvalidOutput, match=r"at \$\.name") as raised:
        ask(saying('{"name": 1}'), saying('{"name": 2}'))
    assert raised.value.error_type == "invalid_output"


@pytest.mark.parametrize(
    "error",
    [
        TimedOut("No complete answer before the deadline."),
        DeadlineExceeded("The deadline passed before the request was sent."),
        RateLimited("The gateway's rate limit is reached (HTTP 429).", status=429),
        ConnectFailed("The connection broke."),
        BadRequest("The gateway did not accept the request (HTTP 400).", status=400),
    ],
    ids=class_name,
)
def test_a_correction_that_fails_is_told_with_what_it_was_for(error: HolySheepError) -> None:
    with pytest.raises(type(error)) as raised:
        ask(saying('{"name": 1}'), error)
    assert raised.value.message == (
        "No usable JSON from gpt-4.1-2025: the answer breaks the schema: at $.name: 1 is not of"
        f" type 'string'. It was asked for once more, which failed: {error.message}"
    )
    assert (raised.value.status, raised.value.error_type) == (error.status, error.error_type)


def test_a_first_failure_is_told_as_it_is() -> None:
    with pytest.raises(TimedOut, match=r"^Too late\.$"):
        ask(TimedOut("Too late."))


def test_a_pattern_that_takes_too_long_is_a_problem_of_the_answer() -> None:
    schema = {"properties": {"a": {"pattern": "^(a|a)*$"}}}
    slow, quick = json.dumps({"a": "a" * 40 + "!"}), json.dumps({"a": "aaa"})
    events, handler = ask(saying(slow), saying(quick), schema=schema)
    assert text_of(events) == quick
    assert "takes too long to check" in handler.calls[1].request.body["messages"][-1]["content"]


def test_an_answer_that_was_cut_off_is_not_asked_for_again() -> None:
    cut_off = saying('{"name": "A', finish_reason="length")
    structured = OneLayer(lambda _: StructuredLayer(), cut_off)
    with pytest.raises(InvalidOutput, match="max_tokens"):
        structured.ask(answer_schema=PERSON)
    assert len(structured.below.calls) == 1


def test_the_usage_of_both_attempts_is_reported() -> None:
    one = Usage(prompt_tokens=10, completion_tokens=5, provider_cost_usd=Decimal("0.1"))
    two = Usage(prompt_tokens=30, completion_tokens=7, provider_cost_usd=Decimal("0.2"))
    events, _ = ask(saying("no", usage=one), saying('{"name": "A"}', usage=two))
    assert events[-1].completion.total_usage == one + two


def test_an_answer_of_tool_calls_is_not_read_as_json() -> None:
    calls = ({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},)
    events, handler = ask(saying("", tool_calls=calls, finish_reason="tool_calls"))
    assert events[-1].completion.first.tool_calls == calls
    assert len(handler.calls) == 1


@pytest.mark.parametrize("text", ["1", "[1]", '"a"', "null", "true", "{}"])
def test_any_json_will_do_where_no_schema_was_given(text: str) -> None:
    events, handler = ask(saying(text), schema={})
    assert events[-1].completion.first.text == text
    assert len(handler.calls) == 1


JSON_SCHEMA_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": PERSON}}


@pytest.mark.parametrize(
    "refusal",
    [
        BadRequest("Unsupported.", param="response_format", status=400),
        BadRequest("response_format json_schema is not supported here.", status=400),
    ],
    ids=["by param", "by message"],
)
def test_a_gateway_without_json_schema_gets_it_as_an_instruction(refusal: BadRequest) -> None:
    events, handler = ask(refusal, saying('{"name": "A"}'), response_format=JSON_SCHEMA_FORMAT)
    assert text_of(events) == '{"name": "A"}'
    body = handler.calls[1].request.body
    assert body["response_format"] == {"type": "json_object"}
    assert json.dumps(PERSON) in body["messages"][0]["content"]
    assert body["messages"][1:] == handler.calls[0].request.body["messages"]


def test_a_correction_keeps_the_instruction_that_replaced_the_format() -> None:
    refusal = BadRequest("no response_format", status=400)
    _, handler = ask(
        refusal, saying("no"), saying('{"name": "A"}'), response_format=JSON_SCHEMA_FORMAT
    )
    assert handler.calls[2].request.body["messages"][0]["role"] == "system"
    assert handler.calls[2].request.body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    "error",
    [BadRequest("temperature is wrong"), UnknownModel("who?"), ServerError("down")],
    ids=class_name,
)
def test_other_failures_are_not_taken_for_a_missing_format(error: HolySheepError) -> None:
    with pytest.raises(type(error)):
        ask(error, response_format=JSON_SCHEMA_FORMAT)


@pytest.mark.parametrize("response_format", [None, "json", {"type": "json_object"}, []])
def test_a_format_of_the_callers_own_making_does_not_break_the_refusal(
    response_format: Any,
) -> None:
    with pytest.raises(BadRequest, match="response_format is wrong"):
        ask(BadRequest("response_format is wrong"), response_format=response_format)


def test_the_message_of_a_wrong_answer_stays_on_one_line_of_bearable_length() -> None:
    nasty = json.dumps({"name": ["line\nbreak" * 500]})
    with pytest.raises(InvalidOutput) as raised:
        ask(saying(nasty), saying(nasty))
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 600
