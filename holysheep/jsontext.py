"""JSON from outside, read strictly.

Python's parser takes more than JSON (``NaN``) and fails on some of it in ways of its own (deep
nesting ends in a ``RecursionError``). It also lets halves of characters through: a gateway that
escapes everything beyond ASCII and cuts an answer between the two halves of an emoji sends text
that cannot be encoded again.
"""

import json
import math
import re
from typing import Any

_MAX_INTEGER = 2**1024
"""As large as a float; beyond, a number can hardly be put into words."""
MAX_DEPTH = 100
"""Deeper values end in a RecursionError somewhere, in a validator or in the host."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ``ValueError`` for anything that is none.

    Strings in it may hold halves of characters where they were escaped: see ``whole_characters``.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at ``at``, and where it ends; what follows it is not looked at.

    Raises ``json.JSONDecodeError`` for one that is malformed or not complete, and another
    ``ValueError`` for one that no further text could mend.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_json(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value holds nothing but what JSON has, and not too deep."""
    match value:
        case None | bool() | str():
            return True
        case int():
            return abs(value) < _MAX_INTEGER
        case float():
            return math.isfinite(value)
        case list():
            return depth > 0 and all(is_json(item, depth - 1) for item in value)
        case dict():
            return depth > 0 and all(
                isinstance(key, str) and is_json(item, depth - 1) for key, item in value.items()
            )
        case _:
            return False


def bracket_depth(text: str) -> int:
    """How deep the brackets of a text are nested at most; those in its strings count too."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def without_tabs(text: str) -> str:
    """JSON that is to be read as YAML, which knows no tabs; other text is left alone."""
    return text.replace("\t", "  ") if text.lstrip().startswith(("{", "[")) else text


def whole_characters(text: str) -> str:
    """``text`` with halves of characters joined where they belong together, else replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_whole_characters(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A JSON value with ``whole_characters`` in all its strings.

    Raises ``ValueError`` for one that is nested deeper than what comes after it can take.
    """
    if isinstance(value, str):
        return whole_characters(value)
    if not isinstance(value, list | dict):
        return value
    if not depth:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        return [with_whole_characters(item, depth - 1) for item in value]
    return {
        whole_characters(key): with_whole_characters(item, depth - 1) for key, item in value.items()
    }


def ends_in_half(text: str) -> bool:
    """Whether the last character is the first half of one whose second half may follow."""
    return bool(text) and "\ud800" <= text[-1] <= "\udbff"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
