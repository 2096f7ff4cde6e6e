"""What is shipped: the files of the package, and what stands in them."""

import re
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from tests.package.declared import (
    ROOT,
)

# What the marketplace's scan for financial activity looks for, and where it looks.
FLAGGED = re.compile(
    r"\b(charge[ds]?|payments?|transactions?|refund(s|ed)?|deposits?|checkout|withdraw(s|als?)?"
    r"|payouts?|trading)\b",
    re.IGNORECASE,
)
FLAGGED_SUFFIXES = {".md", ".yaml", ".yml", ".json", ".toml", ".py", ".js"}
KEY_LIKE = re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")

# --- Shipped files ------------------------------------------------------------------------------

IGNORED = (ROOT / ".difyignore").read_text(encoding="utf-8").splitlines()
IGNORE = GitIgnoreSpec.from_lines(IGNORED)


def shipped_files() -> list[Path]:
    return sorted(ROOT / name for name in IGNORE.match_tree_files(ROOT, negate=True))


def test_difyignore_has_only_patterns_that_the_packager_understands() -> None:
    for pattern in IGNORED:
        assert re.fullmatch(r"[\w.*-]+/?", pattern), pattern


def test_package_holds_only_what_the_plugin_needs() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in shipped_files()}
    folders = {top for top in tops if (ROOT / top).is_dir()}
    assert folders == {"_assets", "endpoints", "group", "holysheep", "host", "nodes", "provider"}
    files = tops - folders
    assert {"manifest.yaml", "README.md", "PRIVACY.md", "LICENSE"} <= files
    assert not {".env", "Makefile", "uv.lock"} & files


@pytest.mark.parametrize(
    "name",
    [
        ".git/config",
        ".venv/bin/python",
        "venv/bin/python",
        "tests/package/test_yaml.py",
        "devtools/x.py",
        "examples/x.yml",
        "docs/x.md",
        ".ci/x.yml",
        ".github/x.yml",
        "nodes/__pycache__/x.pyc",
        ".mypy_cache/x",
        ".ruff_cache/x",
        ".pytest_cache/x",
        "dist/x.difypkg",
        "x.difypkg",
        "Makefile",
        ".env",
    ],
)
def test_package_leaves_out(name: str) -> None:
    assert IGNORE.match_file(name)


def test_package_may_hold_the_example_environment() -> None:
    assert not IGNORE.match_file(".env.example")


def test_shipped_files_have_no_word_that_the_marketplace_flags() -> None:
    for path in shipped_files():
        if path.suffix in FLAGGED_SUFFIXES:
            match = FLAGGED.search(path.read_text(encoding="utf-8"))
            assert match is None, (path.name, match)


def test_shipped_files_have_nothing_that_looks_like_a_key() -> None:
    for path in shipped_files():
        assert KEY_LIKE.search(path.read_text(encoding="utf-8", errors="replace")) is None, path
