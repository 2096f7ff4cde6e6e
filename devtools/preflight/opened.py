"""The built package, opened: its files as bytes, and what they declare."""

from __future__ import annotations

import io
import tomllib
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Entry", "Package", "Tree", "Unreadable", "declaration_files", "dig"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # reads the same, ten times as fast


class Unreadable(Exception):
    """A packaged file is missing, is no text in UTF-8, or is not what its name says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in the package; ``mode`` holds the Unix mode bits that the archive gives it."""

    name: str
    content: bytes
    mode: int = 0o100644


@dataclass(frozen=True, slots=True)
class Tree:
    """What the rules need of the project that the package was built from."""

    files: frozenset[str]
    """The names of its files, but those that .gitignore leaves out."""
    ignore_lines: tuple[str, ...]
    """The lines of .difyignore."""

    def holds(self, path: str) -> bool:
        """Tell whether a path is that of a file or a folder."""
        return any(name == path or name.startswith(f"{path}/") for name in self.files)


@dataclass(frozen=True)
class Package:
    """The opened package."""

    entries: tuple[Entry, ...]
    size_bytes: int
    tree: Tree

    @classmethod
    def opened(cls, content: bytes, tree: Tree) -> Package:
        """Open the bytes of a package that was built from ``tree``."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = tuple(
                Entry(info.filename, archive.read(info), info.external_attr >> 16)
                for info in archive.infolist()
                if not info.is_dir()
            )
        return cls(entries, len(content), tree)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The content of each file."""
        return {entry.name: entry.content for entry in self.entries}

    def text(self, name: str) -> str:
        """Return a file as text; raises Unreadable."""
        if name not in self.files:
            raise Unreadable(f"{name} is missing")
        return _text(self.files[name])

    def texts(self, *suffixes: str) -> Iterator[tuple[str, str]]:
        """Yield name and text of each file with one of these endings that is text."""
        for name, content in self.files.items():
            if name.endswith(suffixes):
                try:
                    yield name, _text(content)
                except Unreadable:
                    continue  # a picture, say

    def yaml(self, name: str) -> dict[str, Any]:
        """Return the mapping in a YAML file; raises Unreadable."""
        value = _yaml(self.text(name))
        if not isinstance(value, dict):
            raise Unreadable(f"{name} holds no mapping")
        return value

    def toml(self, name: str) -> dict[str, Any]:
        """Return what is in a TOML file; raises Unreadable."""
        return _toml(self.text(name))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest; raises Unreadable."""
        return self.yaml("manifest.yaml")

    @cached_property
    def providers(self) -> dict[str, dict[str, Any]]:
        """The tool providers that the manifest names and the package holds."""
        return self._declared(dig(self.manifest, "plugins.tools"))

    @cached_property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes of all providers."""
        return self._declared(
            [name for one in self.providers.values() for name in one.get("tools") or ()]
        )

    @cached_property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The endpoint groups that the manifest names and the package holds."""
        return self._declared(dig(self.manifest, "plugins.endpoints"))

    @cached_property
    def endpoints(self) -> dict[str, dict[str, Any]]:
        """The endpoints of all groups."""
        return self._declared(
            [name for one in self.groups.values() for name in one.get("endpoints") or ()]
        )

    def _declared(self, names: Any) -> dict[str, dict[str, Any]]:
        there = [name for name in names or () if isinstance(name, str) and name in self.files]
        return {name: self.yaml(name) for name in there}


def declaration_files(package: Package) -> dict[str, dict[str, Any]]:
    """Return every declaration by its file's name: manifest, providers, nodes, groups, endpoints.

    Raises Unreadable.
    """
    return {
        "manifest.yaml": package.manifest,
        **package.providers,
        **package.nodes,
        **package.groups,
        **package.endpoints,
    }


def dig(value: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted path in nested mappings, None if there is nothing."""
    found: Any = value
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


# Read once for all packages that hold the same text; nobody may change what is returned.


@lru_cache(maxsize=512)
def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(str(error)) from error


@lru_cache(maxsize=256)
def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise Unreadable(" ".join(str(error).split())) from error


@lru_cache(maxsize=64)
def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise Unreadable(str(error)) from error
