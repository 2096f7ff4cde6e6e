"""The Python sources: they compile, wait for nothing without end, and log no secrets."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from devtools.preflight.rule import blocks, warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["named_like_secrets", "parsed"]

_HTTP_METHODS = {"get", "post", "put", "patch", "delete", "head", "options", "request"}
_LOG_METHODS = {
    *("debug", "info", "warning", "warn", "error", "exception", "critical", "log"),
}
_SECRET_WORDS = ("credential", "api_key", "apikey", "secret", "token", "passw")


@blocks
def sources_compile(package: Package) -> Iterator[str]:
    """Every module is Python."""
    for name, content in package.files.items():
        if name.endswith(".py"):
            try:
                compile(content, name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                yield f"{name} does not compile: {error}; repair it."


@warns
def requests_have_a_timeout(package: Package) -> Iterator[str]:
    """A call of the requests library without one waits for ever."""
    for name, source in package.texts(".py"):
        for line in _looked_through(source).endless:
            yield f"{name}, line {line}, calls requests without timeout=; give one."


@warns
def nothing_secret_is_logged(package: Package) -> Iterator[str]:
    """No log line takes a value whose name is that of a secret."""
    for name, source in package.texts(".py"):
        for line, word in _looked_through(source).logged:
            yield f"{name}, line {line}, logs {word!r}; take it out, or redact it."


def named_like_secrets(package: Package) -> list[str]:
    """Return the places where what is raised, returned or yielded is named like a secret.

    The marketplace lists them for the reviewer. Here a token is mostly a part of a text.
    """
    return [
        f"{name}:{line}"
        for name, source in package.texts(".py")
        for line in _looked_through(source).given_away
    ]


@lru_cache(maxsize=512)
def parsed(source: str) -> ast.Module | None:
    """Return the syntax tree of a source, None if it has none."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


class _Found(NamedTuple):
    """Lines of one source."""

    endless: list[int]
    logged: list[tuple[int, str]]
    given_away: list[int]


@lru_cache(maxsize=512)
def _looked_through(source: str) -> _Found:
    found = _Found([], [], [])
    tree = parsed(source)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.Call):
            if _is_endless(node):
                found.endless.append(node.lineno)
            if _is_log(node):
                found.logged.extend((node.lineno, word) for word in _secret_names(node))
        elif isinstance(node, ast.Raise | ast.Return | ast.Yield):
            value = node.exc if isinstance(node, ast.Raise) else node.value
            if value is not None and _secret_names(value):
                found.given_away.append(node.lineno)
    return found


def _is_endless(node: ast.Call) -> bool:
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in _HTTP_METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "requests"
        and not any(keyword.arg == "timeout" for keyword in node.keywords)
    )


def _is_log(node: ast.Call) -> bool:
    if not (isinstance(node.func, ast.Attribute) and node.func.attr in _LOG_METHODS):
        return False
    owner = ast.unparse(node.func.value).lower().rpartition(".")[2]
    return owner.strip("_") in {"logging", "logger", "log"}


def _secret_names(value: ast.AST) -> list[str]:
    """The names in an expression that contain a word for a secret, but those of functions."""
    if isinstance(value, ast.Call):
        parts: list[ast.AST] = [*value.args, *(keyword.value for keyword in value.keywords)]
    else:
        parts = list(ast.iter_child_nodes(value))
    own = value.id if isinstance(value, ast.Name) else getattr(value, "attr", "")
    here = [own] if any(word in own.lower() for word in _SECRET_WORDS) else []
    return here + [name for part in parts for name in _secret_names(part)]
