"""A value that satisfies a simple JSON Schema, for structured answers and tool arguments.

Understood: type (also a list of types), properties, required, items, prefixItems, enum, const,
default bounds of numbers, lengths of strings and arrays, the common formats, anyOf, oneOf and allOf
without conflicts, and local ``$ref``. ``pattern``, ``not`` and the conditional keywords are not.
Optional properties are filled too, up to a depth, so that recursive schemas end.
"""

import math
from typing import Any

__all__ = ["example_of"]

_FULL_DEPTH = 4
_MAX_DEPTH = 40
_FORMATS = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "ipv4": "192.0.2.1",
}


def example_of(schema: Any, seed: str) -> Any:
    """A value valid for ``schema``; the same for the same ``seed`` (hex digits), else different."""
    root = schema if isinstance(schema, dict) else {}
    return _value(schema, root, seed, 0)


def _value(schema: Any, root: dict[str, Any], seed: str, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return f"text {seed}"
    schema = _resolved(schema, root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        choices: list[Any] = schema["enum"]
        return choices[int(seed, 16) % len(choices)]
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword):
            return _value(_simplest(schema[keyword], root, depth), root, seed, depth + 1)
    match _type_of(schema):
        case "object":
            return _object(schema, root, seed, depth)
        case "array":
            return _array(schema, root, seed, depth)
        case "integer":
            return int(_number(schema, seed, step=1))
        case "number":
            return _number(schema, seed, step=schema.get("multipleOf") or 0.5)
        case "boolean":
            return int(seed, 16) % 2 == 0
        case "null":
            return None
        case _:
            return _string(schema, seed)


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with local references followed and allOf merged in."""
    for _ in range(_MAX_DEPTH):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        target: Any = root
        for step in reference[1:].split("/")[1:]:
            target = target.get(step, {}) if isinstance(target, dict) else {}
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**target, **rest} if isinstance(target, dict) else rest
    for part in schema.get("allOf") or ():
        merged = _resolved(part, root) if isinstance(part, dict) else {}
        schema = {
            **schema,
            **merged,
            "properties": {**schema.get("properties", {}), **merged.get("properties", {})},
            "required": [*schema.get("required", ()), *merged.get("required", ())],
        }
    return schema


def _type_of(schema: dict[str, Any]) -> str:
    declared = schema.get("type")
    if isinstance(declared, list):
        declared = next((name for name in declared if name != "null"), "null")
    if isinstance(declared, str):
        return declared
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _simplest(branches: list[Any], root: dict[str, Any], depth: int) -> Any:
    """The first branch; deep inside, one that does not go deeper, where there is one."""
    if depth >= _FULL_DEPTH:
        for branch in branches:
            resolved = _resolved(branch, root) if isinstance(branch, dict) else {}
            if _type_of(resolved) not in ("object", "array"):
                return branch
    return branches[0]


def _object(schema: dict[str, Any], root: dict[str, Any], seed: str, depth: int) -> dict[str, Any]:
    required = schema.get("required") or ()
    properties = schema.get("properties") or {}
    filled = {
        name: _value(part, root, seed, depth + 1)
        for name, part in properties.items()
        if name in required or depth < _FULL_DEPTH
    }
    return filled | {name: f"text {seed}" for name in required if name not in properties}


def _array(schema: dict[str, Any], root: dict[str, Any], seed: str, depth: int) -> list[Any]:
    values = [_value(part, root, seed, depth + 1) for part in schema.get("prefixItems") or ()]
    least = max(int(schema.get("minItems", 0)), 1 if depth < _FULL_DEPTH else 0)
    least = min(least, int(schema.get("maxItems", least)), 1000)
    items = schema.get("items", {})
    for position in range(len(values), least):
        own_seed = f"{(int(seed, 16) + position) & 0xFFFFFFFF:08x}"
        values.append(_value(items, root, own_seed, depth + 1))
    return values


def _number(schema: dict[str, Any], seed: str, *, step: float) -> float:
    """The smallest allowed multiple of ``step`` from a seeded start, inside the bounds."""
    step = schema.get("multipleOf") or step
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    if low == -math.inf:
        low = 0 if high >= 0 else high - 100 * step
    start = math.ceil(low / step)
    if start * step <= schema.get("exclusiveMinimum", -math.inf):
        start += 1
    last = start + 99 if high == math.inf else math.floor(high / step)
    if last * step >= schema.get("exclusiveMaximum", math.inf):
        last -= 1
    chosen: float = (start + int(seed, 16) % max(1, min(100, last - start + 1))) * step
    return chosen


def _string(schema: dict[str, Any], seed: str) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = f"text {seed}".ljust(min(int(schema.get("minLength", 0)), 100_000), "x")
    return text[: int(schema.get("maxLength", len(text)))]
