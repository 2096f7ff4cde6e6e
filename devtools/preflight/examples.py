"""The examples name the plugin by its author's handle, so another author's plugin needs others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from devtools.package import project_tree

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["files_with_author", "write_examples"]


def write_examples(root: Path, folder: Path, old: str, new: str) -> list[Path]:
    """Write the examples of ``root`` into ``folder``, calling the plugin of another author."""
    written = []
    for path in sorted((root / "examples").glob("*.y*ml")):
        text = path.read_text(encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / path.name
        target.write_text(
            re.sub(rf"\b{re.escape(old)}(?=/holysheep/)", new, text), encoding="utf-8"
        )
        written.append(target)
    return written


def files_with_author(root: Path, author: str) -> list[str]:
    """Return the files of the project that name an author, but those of tests, which may."""
    named = re.compile(rf"\b{re.escape(author)}\b".encode())
    names = [name for name in sorted(project_tree(root).files) if not name.startswith("tests/")]
    return [name for name in names if named.search((root / name).read_bytes())]
