"""Hosts that the package names literally: the marketplace shows them as the domains it calls."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

from devtools.preflight.code import parsed
from devtools.preflight.forges import FORGES
from devtools.preflight.opened import Unreadable, dig
from devtools.preflight.rule import warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["named_hosts"]

_URL = re.compile(r"https?://((?:\*\.)?(?:[a-z0-9-]+\.)+[a-z]{2,}|\d+(?:\.\d+){3})", re.IGNORECASE)

# Addresses that name something and are not called: namespaces, forges, indexes, and what RFC 2606
# keeps for examples.
_NOT_CALLED = re.compile(
    r"""(?x)
    (.*\.)?(w3\.org|json-schema\.org|schema\.org|spdx\.org|pypi\.org|pythonhosted\.org)
    | (.*\.)?example(\.com|\.org|\.net)? | .*\.(test|invalid|localhost|local)
    | (docs?|developer|learn)\..* | 127\..* | 0\.0\.0\.0 | .*\.readthedocs\.io
    """
)

# Keys of declarations whose addresses are links for people.
_LINKS = {"url", "help", "repo", "privacy", "homepage", "website", "documentation"}


@warns
def hosts_are_declared(package: Package) -> Iterator[str]:
    """What the sources name is in network.domains, so that the page and the code agree."""
    declared = {str(one).lower() for one in dig(package.manifest, "network.domains") or ()}
    for host, place in named_hosts(package).items():
        covered = host in declared or any(
            one.startswith("*.") and (host.endswith(one[1:]) or host == one[2:]) for one in declared
        )
        if not covered:
            yield f"{place} names {host}; add it to network.domains in manifest.yaml."


def named_hosts(package: Package) -> dict[str, str]:
    """Return each host that sources and declarations name, with the first place."""
    found: dict[str, str] = {}
    for name, text in package.texts(".py", ".js", ".yaml", ".yml", ".json"):
        if "http" not in text:
            continue
        if name.endswith(".py"):
            strings = _python_strings(text)
        elif name.endswith((".yaml", ".yml")):
            try:
                strings = _yaml_strings(package.yaml(name))
            except Unreadable:
                continue
        else:
            strings = iter((text,))
        for host in (match[1].lower() for one in strings for match in _URL.finditer(one)):
            if not _NOT_CALLED.fullmatch(host) and host.removeprefix("www.") not in FORGES:
                found.setdefault(host, name)
    return found


def _python_strings(source: str) -> Iterator[str]:
    """The strings of a module but its docstrings, which describe and call nothing."""
    tree = parsed(source)
    if tree is None:
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


def _yaml_strings(value: Any) -> Iterator[str]:
    """The texts of a declaration, but those of links for people."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _yaml_strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _LINKS:
                yield from _yaml_strings(item)
