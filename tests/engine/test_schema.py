"""Schemas and tools from users: what is accepted, and that the rest is refused with a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.errors import InputError
from holysheep.schema import check_schema, check_tools
from tests.engine.test_types import json_values

GOOD = [
    {},
    {"type": "object", "properties": {"a": {"type": ["string", "null"]}}},
    {"$defs": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
    {"definitions": {"n": {}}, "$ref": "#/definitions/n"},
    {"type": "object", "properties": {"$ref": {"type": "string"}, "x": True}},
    {"x-mine": 1, "nullable": True, "strict": True},
    {"$ref": "#/properties/a", "properties": {"a": {}}},
    {"anyOf": [{"const": None}, {"enum": [1, "a"]}], "title": "T"},
]
BAD = [
    ({"type": "objekt"}, "objekt"),
    ({"propertys": {}}, "propertys"),
    ({"properties": {"a": {"tpye": "string"}}}, r"\$\.properties\.a"),
    ({"items": [{"requred": []}]}, "requred|items"),
    ({"allOf": [{}, {"x": 1}]}, r"allOf\[1\]"),
    ({"$ref": "https://example.com/schema.json"}, "example.com"),
    ({"$ref": "#/$defs/missing"}, "missing"),
    ({"properties": {"a": 5}}, "properties"),
    ({"required": "a"}, "required"),
    ({"minimum": "1"}, "minimum"),
    ({"type": "string", "pattern": "("}, "regex"),
    ({"patternProperties": {"[": {}}}, "regex"),
]


def refusal(check: Callable[[Any], object], value: Any) -> str | None:
    """What the user is told of ``value``; ``None`` = it is accepted."""
    try:
        check(value)
    except InputError as error:
        return error.message
    return None


@pytest.mark.parametrize("schema", GOOD, ids=str)
def test_a_usable_schema_is_accepted(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(("schema", "told"), BAD, ids=[str(schema) for schema, _ in BAD])
def test_a_schema_that_says_nothing_sensible_is_refused(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        check_schema(schema)
    assert raised.value.message.startswith("json_schema ")


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"$ref": "no reference"}]},
        {"const": {"$ref": "no reference"}},
        {"default": {"$ref": "no reference"}},
        {"examples": [{"$ref": "no reference"}]},
    ],
    ids=str,
)
def test_values_in_a_schema_are_not_taken_for_references(schema: dict[str, Any]) -> None:
    check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$dynamicRef": "https://example.com/schema.json"},
        {"$dynamicRef": "#nowhere"},
        {
            "$id": "http://one/",
            "properties": {"x": {"$id": "http://two/", "$ref": "#/definitions/foo"}},
            "definitions": {"foo": {}},
        },
    ],
    ids=["foreign dynamic", "missing dynamic", "other base"],
)
def test_a_reference_that_cannot_be_followed_is_refused_before_anything_is_sent(
    schema: dict[str, Any],
) -> None:
    with pytest.raises(InputError):
        check_schema(schema)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("depth", [20, 100, 300, 5000])
def test_deep_nesting_is_accepted_or_refused_but_never_a_crash(depth: int) -> None:
    told = refusal(check_schema, nested(depth))
    assert told is None or (depth > 20 and "nested too deeply" in told)


@settings(max_examples=50)
@given(schema=st.dictionaries(st.text(max_size=10), json_values))
def test_no_object_crashes_the_check(schema: dict[str, Any]) -> None:
    told = refusal(check_schema, schema) or ""
    assert "\n" not in told
    assert len(told) < 600


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def test_tools_are_returned_as_they_are() -> None:
    tools = [tool(parameters=GOOD[1], description="d", strict=True)]
    assert check_tools(tools) is tools


@pytest.mark.parametrize(
    "tools",
    [
        {},
        "f",
        None,
        [1],
        [{}],
        [{"type": "function"}],
        [{"type": "tool", "function": {"name": "f"}}],
        [{"type": "function", "function": {}}],
        [tool(name=1)],
        [tool(name=" ")],
        [tool(parameters=[])],
        [tool(parameters=None)],
        [tool(parameters={"typ": "object"})],
        [tool(nmae="x")],
        [{**tool(), "extra": 1}],
        [tool(), tool(parameters={"$ref": "https://example.com"})],
    ],
    ids=lambda tools: str(tools)[:50],
)
def test_tools_that_no_gateway_takes_are_refused(tools: Any) -> None:
    with pytest.raises(InputError, match=r"^tools"):
        check_tools(tools)


@settings(max_examples=50)
@given(tools=st.lists(json_values | st.builds(tool, parameters=json_values), max_size=3))
def test_no_list_crashes_the_check_of_tools(tools: list[Any]) -> None:
    assert "\n" not in (refusal(check_tools, tools) or "")
