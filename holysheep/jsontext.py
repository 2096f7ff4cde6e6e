"""JSON from outside, read strictly.

Python's parser takes more than JSON (``NaN``) and fails on some of it in ways of its own (deep
nesting ends in a ``RecursionError``). It also lets halves of characters through: a gateway that
escapes everything beyond ASCII and cuts an answer between the two halves of an emoji sends text
that cannot be encoded again.
"""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ``ValueError`` for anything that is none.

    Strings in it may hold halves of characters where they were escaped: see ``whole_characters``.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def whole_characters(text: str) -> str:
    """``text`` with halves of characters joined where they belong together, else replaced."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def with_whole_characters(value: Any) -> Any:
    """A JSON value with ``whole_characters`` in all its strings."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [with_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {whole_characters(key): with_whole_characters(item) for key, item in value.items()}
    return value


def ends_in_half(text: str) -> bool:
    """Whether the last character is the first half of one whose second half may follow."""
    return bool(text) and "\ud800" <= text[-1] <= "\udbff"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
