"""Prompt templates of batch rows and chain steps: Jinja2 with nothing in it that can do harm.

A template may come from a model, and it runs in the one thread that serves all workspaces. So

- it reads keys, items and variables, never an attribute of a Python object; what it may use is
  listed here (tags, filters, tests, methods), and everything else is refused;
- every rendering has a number of steps. A step is one item that is read, one part of a loop's body
  that is run, or 32 characters of a text; they are taken before the work is done, so that neither
  time nor memory goes beyond them. A step takes half a microsecond at most;
- a template of more parts than can be compiled quickly is refused.

Jinja's own sandbox guards attributes and the operators ``+ - * / // % **``. What it leaves alone
(``~``, comparisons, slices, calls, loops) is rewritten in the syntax tree to calls by name, which
``_Environment.call`` looks up in a table: no object out of a template is ever called.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.exceptions import TemplateAssertionError, TemplateRuntimeError, UndefinedError
from jinja2.filters import do_capitalize, do_float, do_indent, do_int, do_title
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from holysheep.config import MAX_PROMPT_CHARS
from holysheep.errors import InputError
from holysheep.jsontext import MAX_DEPTH
from holysheep.wording import shortened

MAX_TEMPLATE_CHARS = 100_000
# Compiling takes about 20 µs a token.
_MAX_TOKENS = 6000
# Jinja walks the tree by recursion, with up to eight Python frames a level.
_MAX_LEVELS = 60
_MAX_STEPS = 500_000
_CHARS_PER_STEP = 32
_MAX_RANGE = 10_000
# Beyond any float; arithmetic on longer ones takes time that grows faster than they do.
_MAX_BITS = 4096
_MAX_DIGITS = 1000
_MAX_INDENT = 100
_MAX_STRIPPED = 100

_BUILDING_FAILED = (jinja2.TemplateError, SyntaxError, RecursionError, ValueError, MemoryError)
_RENDERING_FAILED = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Template:
    """A prompt template, compiled. Safe for concurrent use.

    Raises ``InputError`` in one sentence that begins with ``name``: for a syntax error with its
    line, and for a tag, filter, test, function or method that is not allowed with those that are.
    """

    def __init__(self, source: str, name: str = "prompt_template") -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise InputError(
                f"{name} has {len(source)} characters, {MAX_TEMPLATE_CHARS} are allowed."
            )
        self._name = name
        checker = _Checker()
        try:
            if any(number >= _MAX_TOKENS for number, _ in enumerate(_ENVIRONMENT.lex(source))):
                raise TemplateRuntimeError(f"it has more than {_MAX_TOKENS} words and signs")
            tree = checker.visit(_ENVIRONMENT.parse(source))
            tree.set_environment(_ENVIRONMENT)
            self._template = _ENVIRONMENT.from_string(tree)
            self._variables = frozenset(find_undeclared_variables(tree))
        except _BUILDING_FAILED as error:
            line = getattr(error, "lineno", None)
            place = f" in line {line}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise InputError(f"{name} is no usable template{place}: {_words_of(error)}.") from None
        self._members = checker.members

    @property
    def variables(self) -> frozenset[str]:
        """The names it takes from outside."""
        return self._variables

    def members_of(self, variable: str) -> frozenset[str]:
        """The names it reads of a variable: ``first`` for ``{{ steps.first }}``.

        ``steps['first']`` and ``steps.get('first')`` are seen too; names that are put together
        only in rendering are not.
        """
        if variable not in self._variables:
            return frozenset()
        return frozenset(self._members.get(variable, ()))

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt for ``values``: what JSON has, by name.

        Lists and mappings are printed as JSON, ``None`` as nothing. Raises ``InputError`` in one
        sentence that begins with the template's name: for a variable or member that is missing,
        for an attribute that is not allowed, for too many steps, for a prompt of more than
        ``config.MAX_PROMPT_CHARS``, and for what any filter or operator fails on.
        """
        steps = _steps.set(_Steps())
        try:
            pieces: list[str] = []
            chars = 0
            for piece in self._template.generate(values):
                chars += len(piece)
                if chars > MAX_PROMPT_CHARS:
                    _refuse(f"the prompt has more than {MAX_PROMPT_CHARS} characters")
                pieces.append(piece)
            return "".join(pieces)
        except _RENDERING_FAILED as error:
            raise InputError(f"{self._name} cannot be rendered: {_words_of(error)}.") from None
        finally:
            _steps.reset(steps)


def _words_of(error: BaseException) -> str:
    match error:
        case RecursionError() | MemoryError():
            return "it is nested too deeply"
        case jinja2.TemplateSyntaxError():
            text = error.message or ""
        case SyntaxError():
            text = error.msg
        case KeyError():
            text = f"there is no {error.args[0]!r}" if error.args else "a key is missing"
        case _:
            text = str(error)
    return shortened(" ".join(text.split()).rstrip("."), 600) or "it fails"


def _refuse(text: str) -> NoReturn:
    raise TemplateRuntimeError(text)


# Steps


class _Steps:
    """The steps that a rendering has left."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = _MAX_STEPS

    def take(self, steps: int) -> None:
        self.left -= max(steps, 1)
        if self.left < 0:
            _refuse(f"it takes more than {_MAX_STEPS} steps; loop over less or shorten the texts")


# Nothing is set outside a rendering: Jinja computes constants ahead and leaves those that fail.
_steps: ContextVar[_Steps] = ContextVar("_steps")


def _take(steps: int) -> None:
    _steps.get().take(steps)


def _take_chars(chars: int) -> None:
    _steps.get().take(1 + chars // _CHARS_PER_STEP)


def _make_text(chars: int) -> None:
    """Take the steps for a text that is about to be made."""
    if chars > MAX_PROMPT_CHARS:
        _refuse(f"a text would have more than {MAX_PROMPT_CHARS} characters")
    _take_chars(chars)


def _take_whole(value: Any, indent: int = 0) -> None:
    """Take the steps for a value with all that is in it.

    A template can put a list twice into another, that one twice into a third and so on: thirty
    lists that are a billion items for whoever walks them. So this walks level by level and pays
    for each level before it looks at it.
    """
    steps = _steps.get()
    level = [value]
    for depth in range(MAX_DEPTH):
        # Indented JSON is written by Python code, an item in a microsecond.
        chars = len(level) * (64 + indent * depth) if indent else 0
        below: list[Any] = []
        for part in level:
            if isinstance(part, str):
                chars += len(part)
            elif isinstance(part, list | tuple):
                steps.take(len(part))
                below += part
            elif _is_mapping(part):
                steps.take(2 * len(part))
                below += part.keys()
                below += part.values()
        steps.take(1 + chars // _CHARS_PER_STEP)
        if not below:
            return
        level = below
    _refuse("a value is nested too deeply")


def _take_search(text: str, word: str) -> None:
    # Python's search compares up to a whole word at every place of a text below 30,000 characters,
    # and is linear in longer ones.
    _take_chars(len(text) * (1 + (min(len(word), 625) // 16 if len(text) < 30_000 else 0)))


# Values


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict | Mapping)  # dict first: asking for Mapping is slow


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None)


def _kind(value: Any) -> str:
    match value:
        case str():
            return "a text"
        case bool() | None:
            return "true, false or none"
        case int() | float():
            return "a number"
        case list() | tuple():
            return "a list"
        case Namespace():
            return "a namespace"
        case _:
            return "a mapping" if _is_mapping(value) else f"a {type(value).__name__}"


class _Missing(StrictUndefined):
    """A variable or a member that is not there; using it is an error, except for ``default``."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"there is no variable {self._undefined_name!r}"


def _missing(value: Any, key: Any) -> _Missing:
    shown = shortened(repr(key), 80) if isinstance(key, str | int) else _kind(key)
    return _Missing(f"there is no {shown} in {_kind(value)}")


def _defined(value: Any) -> Any:
    if isinstance(value, Undefined):
        raise UndefinedError(value._undefined_message)
    return value


def _member(value: Any, key: Any) -> Any:
    """What ``value.key`` and ``value[key]`` mean: a key or an item, never an attribute."""
    _defined(value)
    if _is_mapping(value):
        # Texts and numbers alone are quick to hash.
        if isinstance(key, str | int | float | None) and key in value:
            return value[key]
    elif isinstance(value, str | list | tuple):
        if isinstance(key, int) and -len(value) <= key < len(value):
            return value[key]
    elif isinstance(value, LoopContext):
        if key in _LOOP_MEMBERS:
            return getattr(value, key)
    elif isinstance(value, Namespace) and isinstance(key, str) and not key.startswith("_"):
        return getattr(value, key, _missing(value, key))
    if isinstance(key, str) and key.startswith("__"):
        _refuse(f"the attribute {shortened(key, 60)!r} is not allowed; keys and items are")
    return _missing(value, key)


def _path(value: Any, path: Any) -> Any:
    """The member at ``user.name`` or ``tags.0``."""
    parts = path.split(".", 20) if isinstance(path, str) else [path]
    _take(1 + len(parts))
    for part in parts:
        value = _member(value, int(part) if isinstance(part, str) and part.isdecimal() else part)
    return value


def _text(value: Any) -> str:
    """What ``{{ value }}`` prints."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case Undefined():
            return str(value)  # raises, but for an if-expression without else
        case _:
            return _json(value)


def _json(value: Any, indent: int | None = None) -> str:
    if not (indent is None or (isinstance(indent, int) and 0 <= indent <= 8)):
        _refuse("tojson takes an indent of 0 to 8")
    _take_whole(value, indent or 0)
    return json.dumps(value, ensure_ascii=False, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    _defined(value)
    if _is_mapping(value):
        return dict(value)
    raise TypeError(f"{_kind(value)} cannot be printed")


@pass_context  # so that Jinja prints nothing ahead, while it compiles
def _print(_context: Context, value: Any) -> str:
    text = _text(value)
    _make_text(len(text))
    return text


def _items(value: Any) -> list[Any]:
    """The items to loop over, paid for."""
    _defined(value)
    if not isinstance(value, str | list | tuple) and not _is_mapping(value):
        raise TypeError(f"{_kind(value)} has no items to loop over")
    _take(1 + len(value))
    return value if isinstance(value, list) else list(value)


def _string(value: Any) -> str:
    if not isinstance(_defined(value), str):
        raise TypeError(f"a text is needed here, not {_kind(value)}")
    text: str = value
    _take_chars(len(text))
    return text


def _number(value: Any) -> Any:
    if not isinstance(_defined(value), int | float):
        raise TypeError(f"a number is needed here, not {_kind(value)}")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        _refuse(f"a number has more than {_MAX_BITS} bits")
    _take(1)
    return value


def _sort_key(value: Any, case_sensitive: bool = False) -> Any:
    """Texts and numbers: what can be compared quickly."""
    if isinstance(value, str):
        return _string(value) if case_sensitive else _string(value).lower()
    return _number(value)


# Operators and what else is called by name


def _concat(*parts: Any) -> str:
    return _join(parts)


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(_defined(value), str | list | tuple):
        raise TypeError(f"{_kind(value)} cannot be sliced")
    part = slice(*bounds)
    count = len(range(*part.indices(len(value))))
    if isinstance(value, str):
        _take_chars(count)
    else:
        _take(1 + count)
    return value[part]


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: _contains(right, left),
    "notin": lambda left, right: not _contains(right, left),
}


def _compare(left: Any, *rest: Any) -> bool:
    """``left < middle <= right`` as ``left, "lt", middle, "lteq", right``."""
    for name, right in zip(rest[::2], rest[1::2], strict=True):
        _defined(left)
        _defined(right)
        if name not in ("in", "notin"):
            if isinstance(left, str) and isinstance(right, str):
                _take_chars(min(len(left), len(right)))
            elif _is_plain(left) or _is_plain(right):
                _take(1)
            else:
                _take_whole(left)
                _take_whole(right)
        if not _COMPARISONS[name](left, right):
            return False
        left = right
    return True


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(whole, str):
        _take_search(whole, _string(part))
        return part in whole
    if _is_mapping(whole):
        return not isinstance(_member(whole, part), _Missing)
    items = _items(whole)
    if _is_plain(part):
        chars = len(part) if isinstance(part, str) else 0
        _take(len(items) * (1 + chars // _CHARS_PER_STEP))
    else:
        _take_whole(items)
        _take_whole(part)
    return part in items


def _calculate(sign: str, left: Any, right: Any) -> Any:
    _defined(left)
    _defined(right)
    if isinstance(left, str):
        if sign == "%":
            return _format(left, *(right if isinstance(right, list | tuple) else [right]))
        if sign == "+" and isinstance(right, str):
            _make_text(len(left) + len(right))
            return left + right
        if sign == "*" and isinstance(right, int):
            _make_text(len(left) * max(_number(right), 0))
            return left * right
    if sign == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        _take(1 + len(left) + len(right))
        return [*left, *right]
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise TypeError(f"{sign} does not work for {_kind(left)} and {_kind(right)}")
    _number(left)
    _number(right)
    if (
        sign == "**"
        and isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() * abs(right) > _MAX_BITS
    ):
        _refuse(f"a number would have more than {_MAX_BITS} bits")
    return _ENVIRONMENT.binop_table[sign](left, right)


# A width of two digits, and none that comes from an argument.
_CONVERSION = re.compile(r"%(?:\(\w+\))?[-+ #0]{0,5}\d{0,2}(?:\.\d{1,2})?[sdifeEgGxXo]|%%")


def _format(text: str, *values: Any, **named: Any) -> str:
    """``"%.2f" | format(price)``."""
    _string(text)
    if "%" in _CONVERSION.sub("", text):
        _refuse("a format is like %s, %d or %.2f, with a width of 99 at most")
    if len(values) == 1 and not named and _is_mapping(values[0]) and "%(" in text:
        named = {str(key): value for key, value in values[0].items()}
    if named:
        named = {key: _plain_for_format(value) for key, value in named.items()}
    else:
        values = tuple(_plain_for_format(value) for value in values)
    shown = named.values() if named else values
    longest = max((len(part) for part in shown if isinstance(part, str)), default=0)
    # 1500: a number of 4096 bits has 1234 digits.
    _make_text(len(text) + text.count("%") * (1500 + longest))
    arguments: Any = named or values
    result: str = text % arguments
    return result


def _plain_for_format(value: Any) -> Any:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return _number(value) if plain else _string(_text(value))


def _range(*bounds: Any) -> list[int]:
    numbers = range(*bounds)
    if len(numbers) > _MAX_RANGE:
        _refuse(f"range has more than {_MAX_RANGE} numbers")
    _take(1 + len(numbers))
    return list(numbers)


def _namespace(**values: Any) -> Namespace:
    return Namespace(values)


def _loop(value: Any, weight: int) -> list[Any]:
    """The items of a for loop, with the steps of its body for each of them."""
    items = _items(value)
    _take(len(items) * weight)
    return items


def _call_method(value: Any, method: str, /, *arguments: Any, **named: Any) -> Any:
    _defined(value)
    kind = str if isinstance(value, str) else dict if _is_mapping(value) else type(value)
    methods = _METHODS.get(kind, {})
    if method not in methods:
        _refuse(f"there is no method {method!r} of {_kind(value)}")
    return methods[method](value, *arguments, **named)


# Filters and methods


def _join(value: Any, separator: Any = "", attribute: Any = None) -> str:
    items = _items(value)
    if attribute is not None:
        items = [_path(item, attribute) for item in items]
    texts: list[str] = []
    between = _text(separator)
    for item in items:
        text = _text(item)
        _make_text(len(text) + len(between))
        texts.append(text)
    _make_text(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = _string(text), _string(old), _string(new)
    _take_search(text, old)
    found = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    _make_text(len(text) + found * (len(new) - len(old)))
    _take_chars(len(text) + found)
    result: str = text.replace(old, new, found)
    return result


def _split(text: Any, separator: Any = None, maxsplit: int = -1) -> list[str]:
    text = _string(text)
    if separator is not None:
        _take_search(text, _string(separator))
    # No more pieces than can be paid for.
    left = _steps.get().left
    pieces: list[str] = text.split(separator, left if maxsplit < 0 else min(maxsplit, left))
    _take(1 + len(pieces))
    return pieces


def _splitlines(text: Any) -> list[str]:
    text = _string(text)
    _take(1 + sum(text.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    lines: list[str] = text.splitlines()
    return lines


def _strip(method: Callable[..., str]) -> Callable[..., str]:
    def strip(text: Any, chars: Any = None) -> str:
        if chars is not None and len(_string(chars)) > _MAX_STRIPPED:
            _refuse(f"no more than {_MAX_STRIPPED} different characters can be stripped")
        _take_chars(len(_string(text)) * (1 + len(chars or "") // 16))
        return method(text, chars)

    return strip


def _of_text(method: Callable[[str], Any], slowness: int = 1) -> Callable[[Any], Any]:
    """A function of a text alone, which it reads once."""

    def function(value: Any) -> Any:
        text = _text(value)
        _take_chars(len(text) * slowness)
        return method(text)

    return function


def _with_word(method: Callable[[str, str], Any]) -> Callable[[Any, Any], Any]:
    """A function of a text that looks for a word in it."""

    def function(text: Any, word: Any) -> Any:
        _take_search(_string(text), _string(word))
        return method(text, word)

    return function


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    text = _text(value)
    size = len(_string(width)) if isinstance(width, str) else _number(width)
    if size > _MAX_INDENT:
        _refuse(f"indent takes a width of {_MAX_INDENT} at most")
    _make_text(len(text) + size * (1 + len(_splitlines(text))))
    return do_indent(text, width, first, blank)


def _truncate(
    value: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int = 5
) -> str:
    """As Jinja does it: whole words, and nothing cut that is longer by ``leeway`` at most."""
    text = _text(value)
    _take_chars(len(text))
    if length < len(_string(end)):
        raise ValueError("the length of truncate is less than that of its end")
    if len(text) <= length + leeway:
        return text
    start = text[: length - len(end)]
    return (start if killwords else start.rsplit(" ", 1)[0]) + end


def _wordcount(value: Any) -> int:
    text = _text(value)
    _take(1 + len(text) // 4)
    return sum(1 for _ in re.finditer(r"\w+", text))


def _length(value: Any) -> int:
    if not isinstance(_defined(value), str | list | tuple) and not _is_mapping(value):
        raise TypeError(f"{_kind(value)} has no length")
    _take(1)
    return len(value)


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    _take(1)
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


def _first(value: Any) -> Any:
    if _is_mapping(value):
        _take(1)
        return next(iter(value), _missing(value, 0))
    return _member(value, 0)


def _last(value: Any) -> Any:
    return _member(_items(value) if _is_mapping(value) else value, -1)


def _reverse(value: Any) -> Any:
    return _slice(_items(value) if _is_mapping(value) else value, None, None, -1)


def _sort(
    value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None
) -> list[Any]:
    return _sorted(_items(value), reverse, case_sensitive, attribute)


def _sorted(items: list[Any], reverse: bool, case_sensitive: bool, attribute: Any) -> list[Any]:
    keys = [_sort_key(_of(item, attribute), case_sensitive) for item in items]
    # Each key is compared with a logarithm of their number; long ones may differ late.
    chars = sum(len(key) for key in keys if isinstance(key, str))
    _take(1 + len(keys) * len(keys).bit_length() // 4)
    _take_chars(chars * len(keys).bit_length() // 4)
    order = sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)
    return [items[index] for index in order]


def _of(item: Any, attribute: Any) -> Any:
    return item if attribute is None else _path(item, attribute)


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        items = _items(value)
        if not items:
            return _missing(items, 0)
        keys = [_sort_key(_of(item, attribute), case_sensitive) for item in items]
        return items[choose(range(len(items)), key=keys.__getitem__)]

    return extreme


def _unique(value: Any, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
    seen: dict[Any, Any] = {}
    for item in _items(value):
        seen.setdefault(_sort_key(_of(item, attribute), case_sensitive), item)
    return list(seen.values())


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> Any:
    total = _number(start)
    for item in _items(value):
        total = _number(total + _number(_of(item, attribute)))
    return total


def _round(value: Any, precision: int = 0, method: str = "common") -> Any:
    if not -20 <= _number(precision) <= 20:
        _refuse("round takes a precision of -20 to 20")
    if method == "common":
        return round(_number(value), precision)
    if method not in ("ceil", "floor"):
        raise ValueError("the method of round is common, ceil or floor")
    scale = 10**precision
    return (math.ceil if method == "ceil" else math.floor)(_number(value) * scale) / scale


def _to_number(convert: Callable[..., Any], default: Any) -> Callable[..., Any]:
    def to_number(value: Any, default: Any = default, **named: Any) -> Any:
        _take(1)
        if isinstance(_defined(value), str) and len(value) > _MAX_DIGITS:
            return default
        return convert(value, default, **named)

    return to_number


def _pairs(value: Any) -> list[Any]:
    if not _is_mapping(_defined(value)):
        raise TypeError(f"a mapping is needed here, not {_kind(value)}")
    _take(1 + 2 * len(value))
    return [[key, item] for key, item in value.items()]


def _dictsort(
    value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[Any]:
    if by not in ("key", "value"):
        raise ValueError("dictsort sorts by key or by value")
    return _sorted(_pairs(value), reverse, case_sensitive, 0 if by == "key" else 1)


def _map(value: Any, name: Any = None, *arguments: Any, **named: Any) -> list[Any]:
    items = _items(value)
    if name is None:
        path = named.pop("attribute", None)
        default = named.pop("default", None)
        if path is None or named:
            raise TypeError("map takes the name of a filter, or an attribute and a default")
        members = [_path(item, path) for item in items]
        return members if default is None else [_default(member, default) for member in members]
    function = _named(_FILTERS, "filter", name)
    _take(len(items) * (1 + len(arguments)))
    return [function(item, *arguments, **named) for item in items]


def _choice(keep: bool, by_attribute: bool) -> Callable[..., list[Any]]:
    """``select``, ``reject`` and the same two by an attribute."""

    def choose(value: Any, *arguments: Any) -> list[Any]:
        path, arguments = (arguments[0], arguments[1:]) if by_attribute else (None, arguments)
        test = _named(_TESTS, "test", arguments[0]) if arguments else bool
        items = _items(value)
        _take(len(items) * (1 + len(arguments)))
        return [item for item in items if bool(test(_of(item, path), *arguments[1:])) is keep]

    return choose


def _named(table: Mapping[str, Callable[..., Any]], kind: str, name: Any) -> Callable[..., Any]:
    if not isinstance(name, str) or name not in table:
        _refuse(_not_allowed(kind, name if isinstance(name, str) else _kind(name), table))
    return table[name]


def _not_allowed(kind: str, name: str, allowed: Iterable[str]) -> str:
    return f"the {kind} {shortened(name, 60)!r} is not allowed, only {', '.join(sorted(allowed))}"


def _get(value: Any, key: Any, default: Any = None) -> Any:
    return _default(_member(value, key), default)


def _get_items(part: int) -> Callable[[Any], list[Any]]:
    return lambda value: [pair[part] for pair in _pairs(value)]


_FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda value: abs(_number(value)),
    "capitalize": _of_text(do_capitalize),
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "first": _first,
    "float": _to_number(do_float, 0.0),
    "format": _format,
    "indent": _indent,
    "int": _to_number(do_int, 0),
    "items": _pairs,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": lambda value: list(_items(value)),
    "lower": _of_text(str.lower),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _choice(keep=False, by_attribute=False),
    "rejectattr": _choice(keep=False, by_attribute=True),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "select": _choice(keep=True, by_attribute=False),
    "selectattr": _choice(keep=True, by_attribute=True),
    "sort": _sort,
    "string": _of_text(str),
    "sum": _sum,
    "title": _of_text(do_title, slowness=16),
    "tojson": _json,
    "trim": _strip(str.strip),
    "truncate": _truncate,
    "unique": _unique,
    "upper": _of_text(str.upper),
    "wordcount": _wordcount,
}


def _type_test(*types: type, without: tuple[type, ...] = ()) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types) and not isinstance(value, without)


def _comparison(name: str) -> Callable[[Any, Any], bool]:
    return lambda left, right: _compare(left, name, right)


_TESTS: dict[str, Callable[..., Any]] = {
    "boolean": _type_test(bool),
    "defined": lambda value: not isinstance(value, Undefined),
    "divisibleby": lambda value, by: _number(value) % _number(by) == 0,
    "eq": _comparison("eq"),
    "equalto": _comparison("eq"),
    "even": lambda value: _number(value) % 2 == 0,
    "false": lambda value: value is False,
    "float": _type_test(float),
    "ge": _comparison("gteq"),
    "gt": _comparison("gt"),
    "in": _comparison("in"),
    "integer": _type_test(int, without=(bool,)),
    "iterable": lambda value: isinstance(value, str | list | tuple) or _is_mapping(value),
    "le": _comparison("lteq"),
    "lower": _of_text(str.islower),
    "lt": _comparison("lt"),
    "mapping": _is_mapping,
    "ne": _comparison("ne"),
    "none": lambda value: value is None,
    "number": _type_test(int, float),
    "odd": lambda value: _number(value) % 2 == 1,
    "sequence": lambda value: isinstance(value, str | list | tuple) or _is_mapping(value),
    "string": _type_test(str),
    "true": lambda value: value is True,
    "undefined": lambda value: isinstance(value, Undefined),
    "upper": _of_text(str.isupper),
}

_METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        "capitalize": _of_text(str.capitalize),
        "count": _with_word(str.count),
        "endswith": _with_word(str.endswith),
        "find": _with_word(str.find),
        "isdigit": _of_text(str.isdigit),
        "join": lambda separator, value: _join(value, separator),
        "lower": _of_text(str.lower),
        "lstrip": _strip(str.lstrip),
        "removeprefix": _with_word(str.removeprefix),
        "removesuffix": _with_word(str.removesuffix),
        "replace": _replace,
        "rstrip": _strip(str.rstrip),
        "split": _split,
        "splitlines": _splitlines,
        "startswith": _with_word(str.startswith),
        "strip": _strip(str.strip),
        "title": _of_text(str.title),
        "upper": _of_text(str.upper),
    },
    dict: {
        "get": _get,
        "items": _pairs,
        "keys": _get_items(0),
        "values": _get_items(1),
    },
    LoopContext: {"cycle": lambda loop, *values: values[loop.index0 % len(values)]},
}
_METHOD_NAMES = frozenset(name for methods in _METHODS.values() for name in methods)
_LOOP_MEMBERS = frozenset(
    """
    depth depth0 first index index0 last length nextitem previtem revindex revindex0
    """.split()  # noqa: SIM905 - eleven quoted words would read worse
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {"namespace": _namespace, "range": _range}
# What the rewritten tree calls. Names with a blank cannot stand in a template.
_CALLS: dict[str, Callable[..., Any]] = {
    **_FUNCTIONS,
    "compare": _compare,
    "concat": _concat,
    "loop": _loop,
    "method": _call_method,
    "slice": _slice,
}


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            autoescape=False,
            keep_trailing_newline=True,
            undefined=_Missing,
            finalize=_print,
            optimized=False,
            cache_size=0,
        )
        self.globals.clear()
        self.filters = dict(_FILTERS)
        self.tests = dict(_TESTS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return _member(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _member(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        del context
        return _calculate(operator, left, right)

    def call(self, context: Context, name: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function by its name; see ``_Checker``."""
        del context
        kwargs.pop("_loop_vars", None)  # Jinja's own, for functions that want the context
        kwargs.pop("_block_vars", None)
        return _CALLS[name](*args, **kwargs)


_ENVIRONMENT = _Environment()


# The syntax tree

_NODES = frozenset(
    """
    Template Output TemplateData If For Assign AssignBlock With FilterBlock Name NSRef Const List
    Tuple Dict Pair Keyword CondExpr Filter Test Call Getattr Getitem Slice Concat Compare Operand
    And Or Not Neg Pos Add Sub Mul Div FloorDiv Mod Pow
    """.split()  # noqa: SIM905 - forty quoted words would read worse
)
_ALLOWED_TAGS = ("filter", "for", "if", "raw", "set", "with")
_TAGS = {"CallBlock": "call", "FromImport": "from", "Scope": "autoescape"}


class _Checker(NodeTransformer):
    """Refuses what is not allowed, and rewrites what the sandbox leaves alone to calls by name."""

    def __init__(self) -> None:
        self.members: dict[str, set[str]] = {}
        self._weight = 0
        self._level = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        kind = type(node).__name__
        if kind not in _NODES:
            tag = _TAGS.get(kind, kind.lower())
            raise _refusal(node, _not_allowed("tag", tag, _ALLOWED_TAGS))
        self._weight += 1
        self._level += 1
        if self._level > _MAX_LEVELS:
            raise _refusal(node, "it is nested too deeply")
        try:
            return super().visit(node, *args, **kwargs)
        finally:
            self._level -= 1

    def get_visitor(self, node: nodes.Node) -> Any:
        return getattr(self, f"on_{type(node).__name__.lower()}", None)

    def on_templatedata(self, node: nodes.TemplateData) -> nodes.Node:
        self._weight += len(node.data) // _CHARS_PER_STEP
        return node

    def on_for(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise _refusal(node, "a recursive loop is not allowed; loops within loops are")
        before = self._weight
        self.generic_visit(node)
        # The condition of a loop is run for each item too, so all of it counts.
        node.iter = _call("loop", node, [node.iter, _const(self._weight - before, node)])
        return node

    def on_name(self, node: nodes.Name) -> nodes.Node:
        if node.name == "self":
            raise _refusal(node, "the variable 'self' is not allowed; it is Jinja's own")
        return node

    def on_const(self, node: nodes.Const) -> nodes.Node:
        value = node.value
        if isinstance(value, float) and not math.isfinite(value):
            raise _refusal(node, "a number is too large")
        return node

    def on_tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        # Lists have no hash: that of tuples in tuples may take for ever.
        return nodes.List(node.items, lineno=node.lineno) if node.ctx == "load" else node

    def on_concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concat", node, node.nodes)

    def on_compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        arguments = [node.expr]
        for operand in node.ops:
            arguments += [_const(operand.op, node), operand.expr]
        return _call("compare", node, arguments)

    def on_getattr(self, node: nodes.Getattr) -> nodes.Node:
        if node.attr.startswith("__"):
            # It could not be rendered anyway; said here, it is said before any call is made.
            raise _refusal(node, f"the attribute {node.attr!r} is not allowed; keys and items are")
        self._remember(node.node, node.attr)
        return self.generic_visit(node)

    def on_getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Const):
            self._remember(node.node, node.arg.value)
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("slice", node, [node.node, *(each or _const(None, node) for each in bounds)])

    def on_filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in _FILTERS:
            raise _refusal(node, _not_allowed("filter", node.name, _FILTERS))
        return self._plain_call(node)

    def on_test(self, node: nodes.Test) -> nodes.Node:
        if node.name not in _TESTS:
            raise _refusal(node, _not_allowed("test", node.name, _TESTS))
        return self._plain_call(node)

    def on_call(self, node: nodes.Call) -> nodes.Node:
        target = node.node
        if isinstance(target, nodes.Getattr):
            if target.attr not in _METHOD_NAMES:
                raise _refusal(node, _not_allowed("method", target.attr, _METHOD_NAMES))
            if target.attr == "get" and node.args and isinstance(node.args[0], nodes.Const):
                self._remember(target.node, node.args[0].value)
            arguments = [target.node, _const(target.attr, node), *node.args]
            return self._plain_call(_call("method", node, arguments, node))
        if isinstance(target, nodes.Name) and target.name in _FUNCTIONS:
            return self._plain_call(_call(target.name, node, node.args, node))
        name = target.name if isinstance(target, nodes.Name) else "()"
        raise _refusal(node, _not_allowed("function", name, _FUNCTIONS))

    def _plain_call(self, node: Any) -> nodes.Node:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise _refusal(node, "* and ** before an argument are not allowed")
        return self.generic_visit(node)

    def _remember(self, owner: nodes.Node, member: Any) -> None:
        if isinstance(owner, nodes.Name) and isinstance(member, str):
            self.members.setdefault(owner.name, set()).add(member)


def _refusal(place: nodes.Node, text: str) -> TemplateAssertionError:
    return TemplateAssertionError(text, place.lineno)


def _const(value: Any, place: nodes.Node) -> nodes.Const:
    return nodes.Const(value, lineno=place.lineno)


def _call(
    name: str, place: nodes.Node, arguments: list[Any], source: nodes.Call | None = None
) -> nodes.Call:
    """A call by name, with the named arguments of ``source``."""
    kwargs = source.kwargs if source else []
    dyn_args = source.dyn_args if source else None
    dyn_kwargs = source.dyn_kwargs if source else None
    function = _const(name, place)
    return nodes.Call(function, arguments, kwargs, dyn_args, dyn_kwargs, lineno=place.lineno)
