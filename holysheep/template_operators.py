"""The operators of prompt templates, with the steps that each of them takes.

Python's operators do more than a template needs: they multiply texts, format them and compare
lists in lists. So each is named here with the values that it works for.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from jinja2.sandbox import SandboxedEnvironment

from holysheep.template_steps import CHARS_PER_STEP, take, take_chars, take_search
from holysheep.template_values import (
    is_plain,
    items,
    joined,
    kind,
    member,
    number,
    part,
    take_whole,
    word,
)

_ARITHMETIC = ("+", "-", "*", "/", "//", "%")


def _calculated(sign: str, left: Any, right: Any) -> Any:
    if sign == "+" and isinstance(left, str) and isinstance(right, str):
        return joined([left, right])
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise TypeError(f"{sign} does not work for {kind(left)} and {kind(right)}")
    return SandboxedEnvironment.default_binop_table[sign](number(left), number(right))


def _compared(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        take_chars(min(len(left), len(right)))
    elif is_plain(left) or is_plain(right):
        take(1)
    else:
        take_whole(left)
        take_whole(right)
    return compare(left, right)


def _contained(wanted: Any, whole: Any) -> bool:
    if isinstance(whole, str):
        take_search(whole, word(wanted))
        return wanted in whole
    if not is_plain(wanted):
        raise TypeError(f"{kind(wanted)} cannot be looked for")
    if isinstance(whole, dict):
        return wanted in whole
    chars = len(wanted) if isinstance(wanted, str) else 0
    return wanted in items(whole, 2 + chars // CHARS_PER_STEP)


# By the names that Jinja's syntax tree has for them.
OPERATORS: dict[str, Callable[..., Any]] = {
    **{sign: partial(_calculated, sign) for sign in _ARITHMETIC},
    "~": lambda *parts: joined(list(parts)),
    "eq": partial(_compared, operator.eq),
    "ne": partial(_compared, operator.ne),
    "lt": partial(_compared, operator.lt),
    "lteq": partial(_compared, operator.le),
    "gt": partial(_compared, operator.gt),
    "gteq": partial(_compared, operator.ge),
    "in": _contained,
    "notin": lambda wanted, whole: not _contained(wanted, whole),
    ".": member,
    ":": part,
    "for": items,
}
