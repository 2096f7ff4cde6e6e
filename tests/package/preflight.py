"""A package that breaks no rule, and ways to break one; for the tests of the preflight."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import yaml

from devtools.package import packed, packed_files, project_tree
from devtools.preflight.opened import Entry, Package
from devtools.preflight.owner import Owner
from devtools.preflight.rule import Rule
from tests.package.declared import ROOT

OWNER = Owner(
    repo="https://github.com/someone/holysheep", contact="someone@example.org", author="someone"
)

Change = Callable[[Package], Package]


@cache
def whole(owner: Owner = OWNER) -> Package:
    """The package of this tree, with what its owner gives."""
    return Package.opened(packed(owner.applied(packed_files(ROOT))), project_tree(ROOT))


@dataclasses.dataclass(frozen=True)
class Case:
    """A change that breaks a rule, and words of the sentence that says so."""

    rule: Rule
    change: Change
    said: str


def replaced(package: Package, **fields: Any) -> Package:
    return dataclasses.replace(package, **fields)


def file(name: str, content: bytes | str, *, mode: int = 0o100644) -> Change:
    """A file with this content, in place of one of the same name."""
    data = content.encode() if isinstance(content, str) else content

    def change(package: Package) -> Package:
        others = tuple(entry for entry in package.entries if entry.name != name)
        return replaced(package, entries=(*others, Entry(name, data, mode)))

    return change


def without(name: str) -> Change:
    def change(package: Package) -> Package:
        assert name in package.files
        return replaced(package, entries=tuple(e for e in package.entries if e.name != name))

    return change


def text(name: str, old: str, new: str) -> Change:
    """A file in which one text stands for another."""

    def change(package: Package) -> Package:
        before = package.text(name)
        assert old in before, (name, old)
        return file(name, before.replace(old, new))(package)

    return change


def line(name: str, added: str) -> Change:
    """A file with one line more."""
    return lambda package: file(name, f"{package.text(name)}\n{added}\n")(package)


def field(name: str, path: str, value: Any) -> Change:
    """A declaration with another value at a dotted path; a number is a place in a list."""

    def change(package: Package) -> Package:
        declared = yaml.load(package.text(name), Loader=yaml.CSafeLoader)
        *ways, last = (int(key) if key.isdigit() else key for key in path.split("."))
        place = declared
        for way in ways:
            place = place[way]
        place[last] = value
        written = yaml.dump(declared, Dumper=yaml.CSafeDumper, allow_unicode=True, sort_keys=False)
        return file(name, written)(package)

    return change


def both(*changes: Change) -> Change:
    def change(package: Package) -> Package:
        for one in changes:
            package = one(package)
        return package

    return change
