"""Nothing in the package looks like a key, not even in a document."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

from devtools.preflight.rule import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["literals_for_secrets"]

_KEYS = re.compile(
    r"""(?x)
    \bsk-[A-Za-z0-9_-]{20,} | \bgh[oprsu]_[A-Za-z0-9_]{20,} | \bxox[abprs]-[A-Za-z0-9-]{10,}
    | \bAKIA[0-9A-Z]{16}\b | \beyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]{8,}){2}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    """
)

_ASSIGNMENT = re.compile(
    r"""(?xi)
    (?P<name> [\w.-]* (api[_-]?key | access[_-]?key | private[_-]?key | secret | token | password)
       [\w.-]* )
    ["']? \s* [:=] \s*
    ( (?P<quote>["']) (?P<quoted>.*?) (?P=quote) | (?P<bare>[^\s"',\#}]+) )
    """
)
_CODE = (".py", ".js", ".lua")  # where a value without quotes is an expression

# What stands for a secret or is none: a placeholder, a number, a switch.
_NO_SECRET = re.compile(r"(?i).*your.*|-?\d+(\.\d+)?|true|false|yes|no|on|off|null|none|[x*_-]+")

_SHORTEST = 12  # characters of what could be a secret
_HEX = re.compile(r"[0-9A-Fa-f]+")
_TOKEN = re.compile(r"[A-Za-z0-9+/=_.-]+")
_MIN_HEX_BITS, _MIN_TOKEN_BITS = 3.0, 4.5  # entropy of a character, of what was drawn at random


@blocks
def nothing_has_the_shape_of_a_key(package: Package) -> Iterator[str]:
    """Keys of known services, tokens and private keys; a placeholder of that shape counts too."""
    for name, text in package.texts(""):
        for found in _KEYS.finditer(text):
            yield (
                f"{name}, line {text.count(chr(10), 0, found.start()) + 1}, has what looks like a"
                " key; take it out, and write your-api-key where a placeholder is meant."
            )


@blocks
def no_secret_is_assigned(package: Package) -> Iterator[str]:
    """No random value stands beside a name like api_key, token or password."""
    for name, number, value in _assigned(package):
        if _is_random(value):
            yield (
                f"{name}, line {number}, gives a random value to what is named like a secret;"
                " take it out."
            )


def literals_for_secrets(package: Package) -> list[str]:
    """Return where a text that is not random stands beside a name like that of a secret.

    The marketplace lists them for the reviewer; here they are the names of variables and fields.
    """
    return [
        f"{name}:{number}"
        for name, number, value in _assigned(package)
        if value and not _is_random(value) and not _NO_SECRET.fullmatch(value)
    ]


def _assigned(package: Package) -> Iterator[tuple[str, int, str]]:
    """File, line and value of each literal beside a name like that of a secret."""
    for name, text in package.texts(""):
        for number, value in _assigned_in(text, is_code=name.endswith(_CODE)):
            yield name, number, value


@lru_cache(maxsize=512)
def _assigned_in(text: str, *, is_code: bool) -> list[tuple[int, str]]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        for assignment in _ASSIGNMENT.finditer(line):
            if assignment["quoted"] is not None:
                found.append((number, assignment["quoted"].strip()))
            elif not is_code:
                found.append((number, assignment["bare"]))
    return found


def _is_random(value: str) -> bool:
    if len(value) < _SHORTEST or value.startswith(("http://", "https://", "/", "./", "../")):
        return False
    if _HEX.fullmatch(value):
        return _entropy_bits(value) >= _MIN_HEX_BITS
    return bool(_TOKEN.fullmatch(value)) and _entropy_bits(value) >= _MIN_TOKEN_BITS


def _entropy_bits(value: str) -> float:
    """Shannon's entropy of a character, in bits."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)
