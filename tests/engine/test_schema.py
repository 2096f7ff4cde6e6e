"""Schemas and tools from users: what is accepted, and that the rest is refused with a sentence."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep import validation
from holysheep.errors import InputError
from holysheep.ports import SystemClock
from holysheep.schema import check_schema, check_tools, problem_of
from holysheep.validation import TooSlow, problem_in
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
    {
        "oneOf": [{"$ref": "#/$defs/Cat"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}},
        "$defs": {"Cat": {"properties": {"kind": {"const": "cat"}}}},
    },
    {"properties": {"a": {"type": "string", "example": "x"}}, "example": {"a": "x"}},
    {"properties": {"a": {}, "b": {}}, "propertyOrdering": ["b", "a"]},
    {"$schema": "https://json-schema.org/draft/2020-12/schema"},
    {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{}], "additionalItems": False},
    {"$schema": "http://json-schema.org/draft-04/schema#", "id": "http://x/y", "minimum": 1},
    {"minimum": 1, "exclusiveMinimum": True},
    {"pattern": r"^[a-z]{2,64}@(\w+\.)+[a-z]{2,}$", "type": "string"},
    {"patternProperties": {"^x_[0-9]{1,9}$": {}}, "additionalProperties": False},
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
    ({"pattern": r"(?R)"}, "regex"),
    ({"pattern": "(" * 5000 + ")" * 5000}, "regex"),
    ({"pattern": "(((((a{99}){99}){99}){99}){99})"}, "repeat too much"),
    ({"pattern": "(?:a{1000}){1000}"}, "repeat too much"),
    ({"pattern": "a{9999999999}"}, "repeat too much"),
    (
        {"allOf": [{"pattern": "x" * 30_000}, {"patternProperties": {"y" * 30_000: {}}}]},
        "too large",
    ),
    ({"id": "http://x/y"}, "'id'"),
    ({"items": [5]}, "5"),
    ({"items": [{}], "additionalItems": 5}, "5"),
    ({"items": [{}], "prefixItems": [{}]}, "items"),
    ({"dependencies": {"a": 5}}, "5"),
    ({"dependencies": {"a": ["b"]}, "dependentRequired": 5, "$ref": "#/title"}, "title"),
    ({"$ref": "#/title", "title": "x"}, "no schema in it"),
    ({"$ref": "#/x-mine", "x-mine": {"type": "objekt"}}, "no schema in it"),
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


@pytest.mark.parametrize(("schema", "told"), BAD, ids=[str(schema)[:60] for schema, _ in BAD])
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


# --- answers ------------------------------------------------------------------------------------

TUPLE: dict[str, Any] = {"items": [{"type": "integer"}, {"type": "string"}]}
EXTRAS = {"properties": {"a": {}}, "patternProperties": {"^x_": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "good", "bad", "told"),
    [
        ({"pattern": "^a+$"}, "aa", "ab", r"at \$: 'ab' does not match '\^a\+\$'"),
        (
            {"patternProperties": {"^x": {"type": "null"}}},
            {"x": None, "a": 1},
            {"x1": 1},
            r"\$\.x1",
        ),
        ({**EXTRAS, "additionalProperties": False}, {"a": 1, "x_b": 2}, {"b": 3}, "'b' was unexp"),
        ({**EXTRAS, "additionalProperties": {"type": "null"}}, {"b": None}, {"b": 3}, r"\$\.b"),
        ({"allOf": [EXTRAS], "unevaluatedProperties": False}, {"a": 1, "x_b": 2}, {"b": 3}, "'b'"),
        (
            {"$ref": "#/$defs/e", "$defs": {"e": EXTRAS}, "unevaluatedProperties": False},
            {"a": 1, "x_b": 2},
            {"b": 3, "c": 4},
            "'b', 'c' were unexpected",
        ),
        (
            {
                "if": {"properties": {"a": {"const": 1}}},
                "then": {"properties": {"b": {}}},
                "else": {"properties": {"c": {}}},
                "dependentSchemas": {"a": {"properties": {"d": {}}}},
                "unevaluatedProperties": False,
            },
            {"a": 1, "b": 2, "d": 3},
            {"a": 1, "c": 2},
            "'c' was unexpected",
        ),
        (
            {"anyOf": [{"properties": {"a": {}}}, False], "unevaluatedProperties": {"const": 1}},
            {"a": 5, "b": 1},
            {"b": 5},
            r"\$\.b: 1 was expected",
        ),
        (
            {"anyOf": [{"additionalProperties": True}], "unevaluatedProperties": False},
            {"a": 1},
            1,
            "",
        ),
        ({"uniqueItems": True}, [1, True, [1], [True], {"a": 1}, "1"], [{"a": 1}, {"a": 1.0}], "1"),
        ({"uniqueItems": True}, [None, 0, False, [], {}], [[{"a": [1]}], 2, [{"a": [1]}]], "twice"),
        ({"multipleOf": 0.1}, 10**22, 10**400, "too large"),
        (TUPLE, [1, "a", None], [1, 2], r"\$\[1\]"),
        ({**TUPLE, "additionalItems": False}, [1, "a"], [1, "a", 2], "at most 2"),
        ({**TUPLE, "additionalItems": {"type": "null"}}, [1, "a", None], [1, "a", 2], r"\$\[2\]"),
        ({"minimum": 1, "exclusiveMinimum": True}, 2, 1, "minimum of 1"),
        ({"maximum": 1, "exclusiveMaximum": True}, 0, 1, "maximum of 1"),
        ({"maximum": 1, "exclusiveMaximum": False}, 1, 2, "maximum of 1"),
        ({"dependencies": {"a": ["b"]}}, {"a": 1, "b": 2}, {"a": 1}, "'b' is a dependency of 'a'"),
        ({"dependencies": {"a": {"required": ["c"]}}}, {"b": 1}, {"a": 1}, "'c' is a required"),
        ({"type": "string", "nullable": True}, None, 1, "1 is not of type"),
    ],
    ids=str,
)
def test_an_answer_is_held_against_the_schema(
    schema: dict[str, Any], good: Any, bad: Any, told: str
) -> None:
    check_schema(schema)
    assert problem_of(good, schema) == ""
    if told:
        assert re.search(told, problem_of(bad, schema))


def test_a_draft_is_named_and_changes_nothing_else() -> None:
    named = {"$schema": "http://json-schema.org/draft-07/schema#", **TUPLE}
    assert problem_of([1, 2], named) == problem_of([1, 2], TUPLE)
    assert list(named) == ["$schema", "items"], "the schema that is sent stays as it is"


STALLING = "^(a|a)*$"
STALLED = "a" * 40 + "!"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": STALLING}, STALLED),
        ({"propertyNames": {"pattern": STALLING}}, {STALLED: 1}),
        ({"patternProperties": {STALLING: {}}}, {STALLED: 1}),
        ({"patternProperties": {STALLING: {}}, "additionalProperties": False}, {STALLED: 1}),
        (
            {"allOf": [{"patternProperties": {STALLING: {}}}], "unevaluatedProperties": False},
            {STALLED: 1},
        ),
        (
            {"items": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": STALLING}},
            [STALLED],
        ),
        ({"not": {"pattern": STALLING}}, STALLED),
    ],
    ids=["pattern", "names", "properties", "additional", "unevaluated", "inner draft", "not"],
)
def test_a_pattern_that_would_stall_the_process_is_given_up(
    schema: dict[str, Any], value: Any
) -> None:
    check_schema(schema)
    began_s = time.perf_counter()
    assert problem_of(value, schema) == "its pattern '^(a|a)*$' takes too long to check"
    assert time.perf_counter() - began_s < 2


@pytest.mark.parametrize("pattern", ["^(a+)+$", r"^(\w+\s?)*$", r"(.*a){20}"])
def test_a_pattern_that_stalls_the_standard_library_is_answered(pattern: str) -> None:
    assert "does not match" in problem_of("a" * 18 + "!" * 10, {"pattern": pattern})


def test_many_equal_looking_items_are_told_apart_in_no_time() -> None:
    items = [{"a": number} for number in range(20_000)]
    began_s = time.perf_counter()
    assert problem_of(items, {"uniqueItems": True}) == ""
    assert time.perf_counter() - began_s < 2


def test_of_many_problems_a_few_are_looked_at() -> None:
    texts = ["x" * 1000] * 200_000
    began_s = time.perf_counter()
    assert "'xxx" in problem_of(texts, {"items": {"type": "integer"}})
    assert time.perf_counter() - began_s < 1


class Watch(SystemClock):
    """A clock on which each look takes a millisecond; it counts the turns that others had."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.turns: list[float] = []
        self.monotonic = self._look
        self.sleep = self.turns.append

    def _look(self) -> float:
        self.now_s += 0.001
        return self.now_s


def doubling(times: int) -> dict[str, Any]:
    """A schema of alternatives that are tried 2**times times."""
    parts: dict[str, Any] = {"a0": {"type": "integer"}}
    for number in range(times):
        parts[f"a{number + 1}"] = {"anyOf": [{"$ref": f"#/$defs/a{number}"}] * 2}
    return {"$ref": f"#/$defs/a{times}", "$defs": parts}


def test_a_long_check_lets_others_go_on() -> None:
    clock = Watch()
    assert problem_in([1] * 1000, {"items": {"type": "integer"}}, clock=clock) is None
    assert 50 < len(clock.turns) < 150
    assert 0 < max(clock.turns) < 0.001


def test_a_check_without_end_is_given_up() -> None:
    clock = Watch()
    with pytest.raises(TooSlow, match="too long to check"):
        problem_in("x", doubling(30), clock=clock)
    assert validation.CHECK_MAX_S <= clock.now_s < validation.CHECK_MAX_S + 2


def test_what_was_found_before_a_check_is_given_up_is_told() -> None:
    schema = {**doubling(30), "type": "integer", "$defs": doubling(30)["$defs"]}
    ordered = {"type": schema.pop("type"), **schema}
    problem = problem_in("x", ordered, clock=Watch())
    assert problem is not None
    assert "is not of type 'integer'" in problem.message


UNDER_GEVENT = f"""
from gevent import monkey
monkey.patch_all()
import gevent
from holysheep import validation
from holysheep.schema import problem_of
from tests.engine.test_schema import STALLED, STALLING, doubling
validation.CHECK_MAX_S = 0.5
turns = []
def ticker():
    while True:
        gevent.sleep(0.001)
        turns.append(1)
gevent.spawn(ticker)
gevent.sleep(0.01)
checks = [gevent.spawn(problem_of, STALLED, {{"pattern": STALLING}}) for _ in range(3)]
checks.append(gevent.spawn(problem_of, "x", doubling(30)))
gevent.joinall(checks, timeout=20, raise_error=True)
assert [check.value for check in checks] == [
    *["its pattern {STALLING!r} takes too long to check"] * 3, "it takes too long to check"
], [check.value for check in checks]
assert len(turns) > 20, len(turns)
"""


def test_checks_under_gevent_end_and_let_others_go_on() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNDER_GEVENT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# --- tools --------------------------------------------------------------------------------------


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
