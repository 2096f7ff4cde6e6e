"""JSON Schemas and tool definitions that users give: checked before anything is sent."""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from holysheep.errors import InputError
from holysheep.jsontext import is_json
from holysheep.types import JsonObject
from holysheep.wording import shortened

# Draft 2020-12, the few words of draft 7 that it renamed, and OpenAPI's nullable.
_KEYWORDS = frozenset(
    """
    $schema $id $ref $anchor $dynamicRef $dynamicAnchor $vocabulary $comment $defs
    definitions allOf anyOf oneOf not if then else dependentSchemas dependencies prefixItems
    items contains properties patternProperties additionalProperties propertyNames
    unevaluatedItems unevaluatedProperties additionalItems type enum const multipleOf
    maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern maxItems
    minItems uniqueItems maxContains minContains maxProperties minProperties required
    dependentRequired title description default deprecated readOnly writeOnly examples
    format contentEncoding contentMediaType contentSchema nullable strict
    """.split()  # noqa: SIM905 - sixty quoted words would read worse
)
_UNSUPPORTED = ("$dynamicRef", "$dynamicAnchor", "$vocabulary")
_ONE = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "additionalItems",
    "contentSchema",
    "items",
)
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def check_schema(schema: JsonObject, name: str = "json_schema") -> None:
    """Raise ``InputError`` if ``schema`` is no JSON Schema that an answer can be checked against.

    Misspelt keywords are refused, since a schema that says nothing accepts everything; so are
    references that lead out of the schema, since nothing is fetched for a check.
    """
    if not is_json(schema):
        raise InputError(f"{name} holds something that is no JSON, or is nested too deeply.")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InputError(f"{name} is no valid JSON Schema, {where(error)}.") from None
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    for path, part in _subschemas(schema, "$"):
        for word in part:
            if word not in _KEYWORDS and not word.startswith("x-"):
                raise InputError(
                    f"{name} has the unknown keyword {shortened(word, 60)!r} at {path}. Check its"
                    " spelling, or begin it with x-."
                )
            if word in _UNSUPPORTED or (word == "$id" and path != "$"):
                raise InputError(f"{name} uses {word} at {path}, which is not supported here.")
        reference = part.get("$ref")
        if reference is not None:
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise InputError(
                    f"{name} refers to {shortened(reference, 80)!r}, which is not in it."
                    " Only references within the schema can be followed."
                ) from None


def check_tools(tools: Any) -> list[JsonObject]:
    """``tools`` if it is a list of OpenAI tool definitions. Raises ``InputError``."""
    if not isinstance(tools, list) or not tools:
        raise InputError("tools must be a JSON array of tool definitions.")
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise InputError(f'tools: definition {number} must have "type": "function".')
        function = tool.get("function")
        if not isinstance(function, dict) or not _is_name(function.get("name")):
            raise InputError(f"tools: definition {number} must have a function with a name.")
        unknown = sorted(set(tool) - {"type", "function", "strict"}) + sorted(
            set(function) - {"name", "description", "parameters", "strict"}
        )
        if unknown:
            raise InputError(
                f"tools: definition {number} has unknown keys: {shortened(', '.join(unknown), 80)}."
            )
        parameters = function.get("parameters", {})
        if not isinstance(parameters, dict):
            raise InputError(f"tools: the parameters of definition {number} are no JSON Schema.")
        check_schema(parameters, f"tools: the parameters of definition {number}")
    return tools


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def problem_of(value: Any, schema: JsonObject) -> str:
    """Where and how ``value`` breaks ``schema``, or nothing."""
    # A registry of its own: a $ref to somewhere else must not make this process fetch it.
    validator = Draft202012Validator(schema, registry=EMPTY_REGISTRY)
    try:
        problem = best_match(validator.iter_errors(value))
    except RecursionError:
        return "it refers to itself without end"
    return "" if problem is None else where(problem)


def where(error: ValidationError | SchemaError) -> str:
    """Where a check failed and why, on one line."""
    return f"at {error.json_path}: {shortened(' '.join(error.message.split()))}"


def _subschemas(schema: Any, path: str) -> Iterator[tuple[str, JsonObject]]:
    """A schema and those within it, each with where it stands."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for word in _ONE:
        yield from _subschemas(schema.get(word), f"{path}.{word}")
    for word in _LISTS:
        parts = schema.get(word)
        if isinstance(parts, list):
            for index, part in enumerate(parts):
                yield from _subschemas(part, f"{path}.{word}[{index}]")
    for word in _MAPS:
        parts = schema.get(word)
        if isinstance(parts, dict):
            for key, part in parts.items():
                yield from _subschemas(part, f"{path}.{word}.{key}")
