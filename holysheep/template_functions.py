"""The filters, tests, methods and functions of prompt templates.

All that a template may call is in the tables at the end, by its name; the parameters of each are
its own. What Python and Jinja have is used as it is, once the steps for it are taken and what it
makes is known to be small enough.
"""

from collections.abc import Callable
from typing import Any

import jinja2.tests
from jinja2 import Undefined
from jinja2.filters import do_capitalize, do_float, do_indent, do_int, do_title, do_wordcount

from holysheep.template_steps import make_text, refuse, steps_left, take, take_chars, take_search
from holysheep.template_values import (
    count,
    items,
    joined,
    json_of,
    kind,
    member,
    missing,
    number,
    read,
    text_of,
    word,
)

_MAX_RANGE = 10_000
_MAX_DIGITS = 1000
_MAX_INDENT = 100
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


# Of texts: any value is the text that it prints


def _of_text(function: Callable[[str], Any], slowness: int = 1) -> Callable[[Any], Any]:
    """A function of a text alone, which it reads once."""

    def of_text(value: Any) -> Any:
        text = read(value)
        take_chars(len(text) * slowness)
        return function(text)

    return of_text


def _replace(value: Any, old: Any, new: Any) -> str:
    text = read(value)
    take_search(text, word(old))
    found = text.count(old)
    make_text(len(text) + found * (len(word(new)) - len(old)))
    take_chars(len(text) + found)
    return text.replace(old, new)


def _split(value: Any, sep: Any = None, maxsplit: int = -1) -> list[str]:
    text = read(value)
    if sep is not None:
        take_search(text, word(sep))
    # No more pieces than can be paid for.
    pieces = text.split(sep, steps_left() if maxsplit < 0 else min(maxsplit, steps_left()))
    take(1 + len(pieces))
    return pieces


def _indent(value: Any, width: int = 4, first: bool = False) -> str:
    if number(width) > _MAX_INDENT:
        refuse(f"indent takes a width of {_MAX_INDENT} at most")
    text = read(value)
    lines = 1 + sum(text.count(end) for end in _LINE_ENDS)
    take(lines)
    make_text(len(text) + width * (1 + lines))
    return do_indent(text, width, first)


def _truncate(
    value: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5
) -> str:
    # As Jinja does it: whole words, and nothing cut that is longer by ``leeway`` at most.
    text = read(value)
    if length < len(word(end)):
        raise ValueError("the length of truncate is less than that of its end")
    if len(text) <= length + leeway:
        return text
    start = text[: length - len(end)]
    return (start if killwords else start.rsplit(" ", 1)[0]) + end


def _to_number(convert: Callable[..., Any], zero: Any) -> Callable[..., Any]:
    def to_number(value: Any, default: Any = zero) -> Any:
        take(1)
        digits = value if isinstance(value, int | float) else text_of(value)
        too_long = isinstance(digits, str) and len(digits) > _MAX_DIGITS
        return default if too_long else convert(digits, default)

    return to_number


# Of lists and mappings


def _sort_key(value: Any) -> Any:
    """Texts and numbers: what can be compared quickly."""
    return read(value).lower() if isinstance(value, str) else number(value)


def _sort(value: Any, reverse: bool = False) -> list[Any]:
    found = items(value)
    # Each item is compared with a logarithm of their number; long ones may differ late.
    chars = sum(len(item) for item in found if isinstance(item, str))
    take(1 + len(found) * len(found).bit_length() // 4)
    take_chars(chars * len(found).bit_length() // 4)
    return sorted(found, key=_sort_key, reverse=reverse)


def _extreme(choose: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda value: choose(items(value), key=_sort_key, default=missing([], 0))


def _unique(value: Any) -> list[Any]:
    seen: dict[Any, Any] = {}
    for item in items(value):
        seen.setdefault(_sort_key(item), item)
    return list(seen.values())


def _at(index: int) -> Callable[[Any], Any]:
    return lambda value: member(items(value) if isinstance(value, dict) else value, index)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    take(1)
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a mapping is needed here, not {kind(value)}")
    return value


# Of numbers


def _round(value: Any, precision: int = 0) -> Any:
    if not -20 <= number(precision) <= 20:
        refuse("round takes a precision of -20 to 20")
    return round(number(value), precision)


def _range(start: int, stop: int | None = None, step: int = 1) -> list[int]:
    numbers = range(start) if stop is None else range(start, stop, step)
    if len(numbers) > _MAX_RANGE:
        refuse(f"range has more than {_MAX_RANGE} numbers")
    take(1 + len(numbers))
    return list(numbers)


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda value: abs(number(value)),
    "capitalize": _of_text(do_capitalize),
    "default": _default,
    "first": _at(0),
    "float": _to_number(do_float, 0.0),
    "indent": _indent,
    "int": _to_number(do_int, 0),
    "join": lambda value, d="": joined(value, d),
    "last": _at(-1),
    "length": count,
    "list": lambda value: list(items(value)),
    "lower": _of_text(str.lower),
    "max": _extreme(max),
    "min": _extreme(min),
    "replace": _replace,
    "reverse": lambda value: (read(value) if isinstance(value, str) else items(value))[::-1],
    "round": _round,
    "sort": _sort,
    "string": read,
    "sum": lambda value: sum(map(number, items(value))),
    "title": _of_text(do_title, slowness=16),
    "tojson": json_of,
    "trim": _of_text(str.strip),
    "truncate": _truncate,
    "unique": _unique,
    "upper": _of_text(str.upper),
    "wordcount": _of_text(do_wordcount, slowness=8),
}
METHODS: dict[str, Callable[..., Any]] = {
    "endswith": lambda value, suffix: word(value).endswith(word(suffix)),
    "get": lambda value, key, default=None: _default(member(_mapping(value), key), default),
    "items": lambda value: [[key, value[key]] for key in items(_mapping(value), 2)],
    "keys": lambda value: items(_mapping(value)),
    "lower": FILTERS["lower"],
    "replace": _replace,
    "split": _split,
    "startswith": lambda value, prefix: word(value).startswith(word(prefix)),
    "strip": FILTERS["trim"],
    "title": FILTERS["title"],
    "upper": FILTERS["upper"],
    "values": lambda value: [value[key] for key in items(_mapping(value), 2)],
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"range": _range}
TESTS: dict[str, Callable[..., Any]] = {
    "defined": jinja2.tests.test_defined,
    "even": lambda value: number(value) % 2 == 0,
    "false": jinja2.tests.test_false,
    "mapping": jinja2.tests.test_mapping,
    "none": jinja2.tests.test_none,
    "number": jinja2.tests.test_number,
    "odd": lambda value: number(value) % 2 == 1,
    "string": jinja2.tests.test_string,
    "true": jinja2.tests.test_true,
    "undefined": jinja2.tests.test_undefined,
}
