"""Prompt templates of batch rows and chain steps: Jinja2 with nothing in it that can do harm.

A template may come from a model, and it runs in the one thread that serves all workspaces. So

- it has a language of its own size: ``template_syntax`` lists the tags, ``template_functions`` the
  filters, tests, methods and functions, and everything else is refused;
- it reads keys, items and variables, never an attribute of a Python object: ``template_values``;
- neither time nor memory of a rendering goes beyond its steps: ``template_steps``;
- a template of more parts than can be compiled quickly is refused.

Jinja's sandbox is the second wall: it would guard what is guarded here already.
"""

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.exceptions import TemplateRuntimeError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from holysheep.config import MAX_PROMPT_CHARS
from holysheep.errors import InputError
from holysheep.template_functions import TESTS
from holysheep.template_steps import counted, refuse
from holysheep.template_syntax import FILTERS_OF_THE_TREE, Checker
from holysheep.template_values import Missing, printed
from holysheep.wording import shortened

MAX_TEMPLATE_CHARS = 100_000
# Compiling takes about 50 µs a token: Jinja walks the tree twice, for the names and for the code.
_MAX_TOKENS = 6000

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
        checker = Checker()
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
        pieces: list[str] = []
        chars = 0
        try:
            with counted():
                for piece in self._template.generate(values):
                    chars += len(piece)
                    if chars > MAX_PROMPT_CHARS:
                        refuse(f"the prompt has more than {MAX_PROMPT_CHARS} characters")
                    pieces.append(piece)
        except _RENDERING_FAILED as error:
            raise InputError(f"{self._name} cannot be rendered: {_words_of(error)}.") from None
        return "".join(pieces)


def _words_of(error: BaseException) -> str:
    match error:
        case RecursionError() | MemoryError():
            return "it is nested too deeply"
        case jinja2.TemplateSyntaxError():
            text = error.message or ""
        case SyntaxError():
            text = error.msg
        case _:
            text = str(error)
    return shortened(" ".join(text.split()).rstrip("."), 600) or "it fails"


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        autoescape=False,
        keep_trailing_newline=True,
        undefined=Missing,
        finalize=printed,
        optimized=False,
        cache_size=0,
    )
    environment.globals.clear()
    environment.filters = dict(FILTERS_OF_THE_TREE)
    environment.tests = dict(TESTS)
    return environment


_ENVIRONMENT = _environment()
