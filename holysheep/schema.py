"""JSON Schemas and tool definitions that users give: checked before anything is sent."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import regex
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from holysheep.errors import InputError
from holysheep.jsontext import is_json
from holysheep.types import JsonObject
from holysheep.validation import TooSlow, problem_in
from holysheep.wording import shortened

# Draft 2020-12, the few words of earlier drafts that it renamed, and what OpenAPI, pydantic and
# Gemini add: nullable, discriminator, example, propertyOrdering.
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
    discriminator example propertyOrdering
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
_MAPS = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
)
_DRAFT_4 = "json-schema.org/draft-04/schema"
_MAX_PATTERN_CHARS = 50_000
"""All patterns of a schema, with what is repeated written out: ``regex`` does that, and fills the
memory with ``((((a{99}){99}){99}){99})``. So many are compiled in about 0.3 s."""
_NO_FORMATS = FormatChecker(formats=())
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)(?:,\d*)?\}|.", re.DOTALL)
"""A piece of a pattern: an escape, a set, a repetition, or any other character."""


def check_schema(schema: JsonObject, name: str = "json_schema") -> None:
    """Raise ``InputError`` if ``schema`` is no JSON Schema that an answer can be checked against.

    Misspelt keywords are refused, since a schema that says nothing accepts everything; so are
    references that lead out of the schema, since nothing is fetched for a check.
    """
    if not is_json(schema):
        raise InputError(f"{name} holds something that is no JSON, or is nested too deeply.")
    schema = _modern(schema)
    try:
        Draft202012Validator.check_schema(schema, format_checker=_NO_FORMATS)
    except SchemaError as error:
        raise InputError(f"{name} is no valid JSON Schema, {where(error)}.") from None
    parts = list(_subschemas(schema, "$"))
    for path, part in parts:
        _check_words(part, path, name)
    _check_patterns([part for _, part in parts], name)
    resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))
    known = {id(part) for _, part in parts}
    for _, part in parts:
        reference = part.get("$ref")
        if reference is not None:
            try:
                target = resolver.lookup(reference).contents
            except Unresolvable:
                target = None
            if not isinstance(target, bool) and id(target) not in known:
                raise InputError(
                    f"{name} refers to {shortened(reference, 80)!r}, which is no schema in it."
                    " Only references within the schema can be followed."
                )


def _check_words(part: JsonObject, path: str, name: str) -> None:
    for word in part:
        if word not in _KEYWORDS and not word.startswith("x-"):
            raise InputError(
                f"{name} has the unknown keyword {shortened(word, 60)!r} at {path}. Check its"
                " spelling, or begin it with x-."
            )
        if word in _UNSUPPORTED or (word == "$id" and path != "$"):
            raise InputError(f"{name} uses {word} at {path}, which is not supported here.")


def _check_patterns(parts: list[JsonObject], name: str) -> None:
    """Raise ``InputError`` for a pattern that cannot be used, or for too many of them."""
    left = _MAX_PATTERN_CHARS
    for part in parts:
        own = (part["pattern"],) if "pattern" in part else ()
        for pattern in (*own, *part.get("patternProperties", ())):
            left -= _written_out(pattern)
            if left < 0:
                raise InputError(f"{name} has patterns that are too large or repeat too much.")
            try:
                with warnings.catch_warnings():
                    # They are about what a later Python may read otherwise.
                    warnings.simplefilter("ignore")
                    re.compile(pattern)
                    regex.compile(pattern)
            except (re.error, regex.error, RecursionError, OverflowError, ValueError):
                raise InputError(
                    f"{name} has a pattern that is no regular expression (regex):"
                    f" {shortened(repr(pattern), 80)}."
                ) from None


def _written_out(pattern: str) -> int:
    """About how many characters a pattern has when what is repeated is written out."""
    open_groups: list[int] = []
    total = last = 0
    for token in _TOKEN.finditer(pattern):
        match token[0]:
            case "(":
                open_groups.append(total)
                total = last = 0
            case ")" if open_groups:
                last, total = total, open_groups.pop() + total
            case _ if token[1] and len(token[1]) > 6:
                return _MAX_PATTERN_CHARS + 1
            case _ if token[1]:
                times = max(1, int(token[1]))
                total += last * (times - 1)
                last *= times
            case _:
                total += 1
                last = 1
    return total + sum(open_groups)


def _modern(schema: JsonObject) -> JsonObject:
    """The schema in the words of draft 2020-12, whatever draft it was written in.

    Lists as ``items``, ``dependencies``, limits that a boolean makes exclusive, and OpenAPI's
    ``nullable`` are rewritten; ``$schema`` is dropped. ``schema`` itself is left as it is.
    """
    new: JsonObject = _modern_part(schema)
    if _DRAFT_4 in str(schema.get("$schema")):
        new.pop("id", None)
    return new


def _modern_part(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    new = {word: wanted for word, wanted in schema.items() if word != "$schema"}
    for word in _ONE:
        if word in new:
            new[word] = _modern_part(new[word])
    for word in _LISTS:
        if isinstance(new.get(word), list):
            new[word] = [_modern_part(part) for part in new[word]]
    for word in _MAPS:
        if isinstance(new.get(word), dict):
            new[word] = {key: _modern_part(part) for key, part in new[word].items()}
    if isinstance(new.get("items"), list) and "prefixItems" not in new:
        new["prefixItems"] = new.pop("items")
        if "additionalItems" in new:
            new["items"] = new.pop("additionalItems")
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(new.get(exclusive), bool) and new.pop(exclusive) and limit in new:
            new[exclusive] = new.pop(limit)
    if isinstance(new.get("dependencies"), dict):
        for key, needed in new.pop("dependencies").items():
            word = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
            others = new.get(word)
            new[word] = {**(others if isinstance(others, dict) else {}), key: needed}
    if new.get("nullable") is True and isinstance(new.get("type"), str):
        new["type"] = [new["type"], "null"]
    return new


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
    try:
        problem = problem_in(value, _modern(schema))
    except TooSlow as error:
        return str(error)
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
