"""Whether a value fits a JSON Schema, found out in bounded time.

jsonschema does the work. A schema comes from a workflow's author and the value from a model, and
one process answers all workspaces, so what could take long is done here instead:

* Patterns are matched by ``regex``, which gives up after a tenth of a second. Those of the standard
  library cannot be stopped: ``^(a|a)*$`` takes minutes on thirty letters.
* Equal items are found by hash instead of by comparing each with each.
* A check of more than 10 ms lets other calls go on in between, and one of 5 s is given up:
  alternatives that refer to alternatives take time without end.
"""

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from itertools import islice
from typing import Any

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from holysheep.ports import Clock, SystemClock
from holysheep.types import JsonObject
from holysheep.wording import shortened

PATTERN_MAX_S = 0.1
"""The longest that one pattern may take on one text. An ordinary one takes microseconds."""
CHECK_MAX_S = 5.0
"""The longest that one check may keep the processor: about a million numbers."""
_TURN_S = 0.01
"""How long a check works before others have their turn."""
_REST_S = 0.0005
"""What the others' turn takes. Not 0: gevent would look after no timers then."""
_MAX_ERRORS = 20
"""So many problems are enough to choose the one that is told. Each repeats a part of the value."""


class TooSlow(Exception):
    """A check was given up; the text says what took so long."""


def problem_in(
    value: Any, schema: JsonObject, clock: Clock | None = None
) -> ValidationError | None:
    """What is wrong with ``value`` first of all, or ``None``. ``schema`` is of draft 2020-12.

    Raises ``TooSlow``, and ``RecursionError`` for a schema that refers to itself without end.
    """
    # A registry of its own: a $ref to somewhere else must not make this process fetch it.
    validator = _Validator(schema, registry=EMPTY_REGISTRY)
    token = _CHECK.set(_Check(schema, clock or SystemClock()))
    problems: list[ValidationError] = []
    try:
        problems.extend(islice(validator.iter_errors(value), _MAX_ERRORS))
    except TooSlow:
        if not problems:
            raise
    finally:
        _CHECK.reset(token)
    problem: ValidationError | None = best_match(problems)
    return problem


class _Check:
    """One check under way: how long it has worked, and where references lead."""

    def __init__(self, schema: JsonObject, clock: Clock) -> None:
        self._clock = clock
        self._spent_s = 0.0
        self._turn_began_s = clock.monotonic()
        self._resolver = EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))

    def step(self) -> None:
        """Let others go on if it is time, or give up."""
        worked_s = self._clock.monotonic() - self._turn_began_s
        if worked_s < _TURN_S:
            return
        self._spent_s += worked_s
        if self._spent_s > CHECK_MAX_S:
            raise TooSlow("it takes too long to check")
        self._clock.sleep(_REST_S)
        self._turn_began_s = self._clock.monotonic()

    def schema_at(self, reference: str) -> Any:
        """What a ``$ref`` refers to, wherever it stands: a schema has one base."""
        return self._resolver.lookup(reference).contents


_CHECK: ContextVar[_Check] = ContextVar("check")


def _matches(pattern: str, text: str) -> bool:
    _CHECK.get().step()
    try:
        return regex.search(pattern, text, timeout=PATTERN_MAX_S) is not None
    except TimeoutError:
        raise TooSlow(
            f"its pattern {shortened(repr(pattern), 80)} takes too long to check"
        ) from None


def _pattern(_validator: Any, pattern: str, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: JsonObject, value: Any, _schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, schema in patterns.items():
        for name, item in value.items():
            if _matches(pattern, name):
                yield from validator.descend(item, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, value: Any, schema: JsonObject
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    extras = [
        name
        for name in value
        if name not in known and not any(_matches(pattern, name) for pattern in patterns)
    ]
    if allowed is False and extras:
        yield ValidationError(f"Additional properties are not allowed ({_unexpected(extras)})")
    elif allowed is not False:
        for name in extras:
            yield from validator.descend(value[name], allowed, path=name)


def _unevaluated_properties(
    validator: Any, allowed: Any, value: Any, schema: JsonObject
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    others = {word: part for word, part in schema.items() if word != "unevaluatedProperties"}
    evaluated = _evaluated(validator, value, others)
    extras = [name for name in value if name not in evaluated]
    if allowed is False and extras:
        yield ValidationError(f"Unevaluated properties are not allowed ({_unexpected(extras)})")
    elif allowed is not False:
        for name in extras:
            yield from validator.descend(value[name], allowed, path=name)


def _evaluated(validator: Any, value: JsonObject, schema: Any) -> set[str]:
    """The properties that ``schema``, which ``value`` fits, has looked at."""
    check = _CHECK.get()
    check.step()
    if not isinstance(schema, dict):
        return set()
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return set(value)
    names: set[str] = value.keys() & schema.get("properties", {}).keys()
    for pattern in schema.get("patternProperties", {}):
        names |= {name for name in value if _matches(pattern, name)}
    parts = [part for word in ("allOf", "anyOf", "oneOf") for part in schema.get(word, ())]
    parts += [part for name, part in schema.get("dependentSchemas", {}).items() if name in value]
    if "$ref" in schema:
        parts.append(check.schema_at(schema["$ref"]))
    if "if" in schema:
        parts.append(schema["if"])
        fits = validator.evolve(schema=schema["if"]).is_valid(value)
        parts.append(schema.get("then" if fits else "else", True))
    for part in parts:
        if validator.evolve(schema=part).is_valid(value):
            names |= _evaluated(validator, value, part)
    return names


def _unexpected(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:10])
    return f"{shown} {'was' if len(names) == 1 else 'were'} unexpected"


def _unique_items(
    _validator: Any, wanted: bool, value: Any, _schema: Any
) -> Iterator[ValidationError]:
    if not wanted or not isinstance(value, list):
        return
    seen = set()
    for index, item in enumerate(value):
        _CHECK.get().step()
        hashable = _hashable(item)
        if hashable in seen:
            yield ValidationError(f"item {index} is there twice, and items have to be unique")
            return
        seen.add(hashable)


def _hashable(value: Any) -> Any:
    """Equal for equal JSON values and no others: 1 is 1.0, but true is not 1."""
    match value:
        case bool():
            return (bool, value)
        case list():
            return (list, *(_hashable(item) for item in value))
        case dict():
            return (dict, frozenset((key, _hashable(item)) for key, item in value.items()))
        case _:
            return value


def _multiple_of(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    try:
        yield from _STOCK["multipleOf"](validator, step, value, schema)
    except OverflowError:
        yield ValidationError("the number is too large")


def _watched(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def check(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        _CHECK.get().step()
        yield from keyword(validator, wanted, value, schema) or ()

    return check


_STOCK: dict[str, Any] = dict(Draft202012Validator.VALIDATORS)
_OWN: dict[str, Callable[..., Iterator[ValidationError]]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "unevaluatedProperties": _unevaluated_properties,
    "uniqueItems": _unique_items,
    "multipleOf": _multiple_of,
}
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {word: _watched(_OWN.get(word, keyword)) for word, keyword in _STOCK.items()},
)
