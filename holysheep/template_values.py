"""The values of prompt templates: what they are, and how they are read and printed.

A value is what JSON has: a text, a number, true, false, none, a list or a mapping. Beside these a
template meets ``loop``, and what is missing. Members are keys and items; of ``loop`` they are
those listed here. No attribute of any other Python object is ever read.
"""

import json
from typing import Any

from jinja2 import StrictUndefined, Undefined, pass_context
from jinja2.runtime import Context, LoopContext

from holysheep.jsontext import MAX_DEPTH
from holysheep.template_steps import CHARS_PER_STEP, make_text, refuse, take, take_chars
from holysheep.wording import shortened

# Beyond any float; arithmetic on longer ones takes time that grows faster than they do.
_MAX_BITS = 4096
_KINDS = {
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
    list: "a list",
    dict: "a mapping",
}
_LOOP_MEMBERS = frozenset(("first", "index", "index0", "last", "length", "revindex", "revindex0"))


# What they are


class Missing(StrictUndefined):
    """A variable or a member that is not there; using it is an error, except for ``default``."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"there is no variable {self._undefined_name!r}"


def missing(value: Any, key: Any) -> Missing:
    """What ``value`` has at ``key``, which is nothing."""
    shown = shortened(repr(key), 80) if isinstance(key, str | int) else kind(key)
    return Missing(f"there is no {shown} in {kind(value)}")


def is_plain(value: Any) -> bool:
    """Whether a value is quick to hash and to compare, but for its length."""
    return isinstance(value, str | int | float | None)


def kind(value: Any) -> str:
    """The kind of a value, for those who complain about it. What is missing complains itself."""
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return _KINDS.get(type(value), f"a {type(value).__name__}")


# How they are read


def member(value: Any, key: Any) -> Any:
    """What ``value.key`` and ``value[key]`` mean: a key or an item, never an attribute."""
    if isinstance(value, dict):
        if is_plain(key) and key in value:
            return value[key]
    elif isinstance(value, str | list):
        if isinstance(key, int) and -len(value) <= key < len(value):
            return value[key]
    elif isinstance(value, LoopContext):
        if key not in _LOOP_MEMBERS:
            refuse(f"loop has only {', '.join(sorted(_LOOP_MEMBERS))}")
        return getattr(value, key)
    return missing(value, key)


def part(value: Any, start: Any, stop: Any) -> Any:
    """``value[start:stop]``."""
    if not isinstance(value, str | list):
        raise TypeError(f"{kind(value)} has no parts")
    cut = slice(start, stop)
    size = len(range(*cut.indices(len(value))))
    take(1 + (size // CHARS_PER_STEP if isinstance(value, str) else size))
    return value[cut]


def count(value: Any) -> int:
    """How many items a value has, keys or characters."""
    if not isinstance(value, str | list | dict):
        raise TypeError(f"{kind(value)} has no items")
    return len(value)


def items(value: Any, weight: int = 1) -> list[Any]:
    """The items to loop over, paid for with the steps that are done for each of them."""
    take(1 + count(value) * weight)
    return value if isinstance(value, list) else list(value)


def number(value: Any) -> Any:
    """A number that is short enough to calculate with."""
    if not isinstance(value, int | float):
        raise TypeError(f"a number is needed here, not {kind(value)}")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        refuse(f"a number has more than {_MAX_BITS} bits")
    take(1)
    return value


def word(value: Any) -> str:
    """What is to be looked for in a text: a text, paid for."""
    if not isinstance(value, str):
        raise TypeError(f"a text is needed here, not {kind(value)}")
    take_chars(len(value))
    return value


def read(value: Any) -> str:
    """The text of a value, paid for."""
    text = text_of(value)
    take_chars(len(text))
    return text


# How they are printed


def text_of(value: Any) -> str:
    """What ``{{ value }}`` prints."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float() | Undefined():
            return str(value)  # what is missing raises, but for an if-expression without else
        case _:
            return json_of(value)


@pass_context  # so that Jinja prints nothing ahead, while it compiles
def printed(_context: Context, value: Any) -> str:
    """What ``{{ value }}`` prints, paid for."""
    text = text_of(value)
    make_text(len(text))
    return text


def joined(texts: Any, between: Any = "") -> str:
    """The texts of values in one."""
    separator = text_of(between)
    parts: list[str] = []
    for each in items(texts):
        text = text_of(each)
        make_text(len(text) + len(separator))
        parts.append(text)
    make_text(sum(map(len, parts)) + len(separator) * len(parts))
    return separator.join(parts)


def json_of(value: Any, indent: int | None = None) -> str:
    """A value as JSON."""
    if not (indent is None or (isinstance(indent, int) and 0 <= indent <= 8)):
        refuse("tojson takes an indent of 0 to 8")
    take_whole(value, indent or 0)
    return json.dumps(value, ensure_ascii=False, indent=indent)


def take_whole(value: Any, indent: int = 0) -> None:
    """Take the steps for a value with all that is in it.

    A template can put a list twice into another, that one twice into a third and so on: thirty
    lists that are a billion items for whoever walks them. So this walks level by level and pays
    for each level before it looks at it.
    """
    level = [value]
    for depth in range(MAX_DEPTH):
        # Indented JSON is written by Python code, an item in a microsecond.
        chars = len(level) * (64 + indent * depth) if indent else 0
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                chars += len(each)
            elif isinstance(each, list):
                take(len(each))
                below += each
            elif isinstance(each, dict):
                take(2 * len(each))
                below += each.keys()
                below += each.values()
            elif not is_plain(each):
                raise TypeError(f"{kind(each)} cannot be printed or compared")
        take_chars(chars)
        if not below:
            return
        level = below
    refuse("a value is nested too deeply")
