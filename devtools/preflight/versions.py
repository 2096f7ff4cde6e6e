"""One version: in the manifest, in pyproject.toml, in the engine, and on top of the changelog."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from devtools.preflight.opened import Unreadable, dig
from devtools.preflight.rule import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package


@blocks
def versions_are_equal(package: Package) -> Iterator[str]:
    """What is shown, what is installed and what the code says of itself are the same."""
    wanted = str(package.manifest.get("version"))
    newest = re.search(r"^## \[([^\]]+)\]", package.text("CHANGELOG.md"), re.MULTILINE)
    versions = {
        "pyproject.toml": dig(package.toml("pyproject.toml"), "project.version"),
        "holysheep/config.py": _constant(package.text("holysheep/config.py"), "VERSION"),
        "CHANGELOG.md": newest and newest[1],
    }
    for name, version in versions.items():
        if version != wanted:
            yield f"{name} has the version {version}, manifest.yaml {wanted}; make them equal."


def _constant(source: str, name: str) -> object:
    """The literal that a module gives to a name; None if it gives none."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise Unreadable(str(error)) from error
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = node.value  # type: ignore[attr-defined]
            return value.value if isinstance(value, ast.Constant) else None
    return None
