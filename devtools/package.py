"""Build the plugin package, open it again, and apply the marketplace's rules to it.

    python -m devtools.package [--root FOLDER] [--output FILE]

The package is what `.difyignore` leaves of the tree, sorted, without dates, modes or compression,
so that the same files give the same bytes on every machine. Every violation of a rule
(`devtools.preflight`) is one sentence on stderr, the exit code is 1 then, and no package is left.
What waits for the plugin's owner is no violation here: the package installs without it.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pathspec
import yaml

from devtools.preflight.catalogue import findings
from devtools.preflight.opened import Package, Tree
from devtools.preflight.report import package_lines
from devtools.preflight.rule import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PackageError", "file_name", "main", "packed", "packed_files", "project_tree"]


class PackageError(Exception):
    """The package could not be built; the text is one sentence for the developer."""


def main(arguments: list[str] | None = None) -> int:
    """Build and check the package; returns the exit code."""
    parser = argparse.ArgumentParser(prog="devtools.package", description="Build the package.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--output", type=Path, help="default: dist/NAME-VERSION.difypkg")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        output: Path = (options.output or root / "dist" / file_name(root)).resolve()
        output.unlink(missing_ok=True)
        content = packed(packed_files(root))
        package = Package.opened(content, project_tree(root))
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    found = [finding for group in findings(package).values() for finding in group]
    violations = [one.sentence for one in found if one.severity is not Severity.OWNER]
    for violation in violations:
        print(violation, file=sys.stderr)
    if violations:
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    print("\n".join(package_lines(output.name, content, len(package.entries))))
    return 0


def file_name(root: Path) -> str:
    """Return NAME-VERSION.difypkg, from the manifest in ``root``; raises PackageError."""
    path = root / "manifest.yaml"
    try:
        manifest = yaml.safe_load(path.read_bytes())
        return f"{manifest['name']}-{manifest['version']}.difypkg"
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        what = " ".join(str(error).split())
        raise PackageError(f"{path} does not give a name and a version: {what}") from error


def packed_files(root: Path) -> dict[str, bytes]:
    """Return the files that the daemon's packager would take from ``root``, by relative name.

    It reads `.difyignore`, or `.gitignore` if there is none, tries each pattern for itself, and
    leaves out whatever one of them matches. A negated pattern (``!``) therefore does nothing.
    Ignore files in subfolders are not read, and `.git` is nothing special. Raises PackageError.
    """
    lines = _lines(root / ".difyignore") or _lines(root / ".gitignore")
    files: dict[str, bytes] = {}
    for path in _walk(root, root, _patterns(lines)):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            raise PackageError(f"{name} is a symbolic link; the package can hold files only.")
        files[name] = path.read_bytes()
    return files


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return the package that holds these files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            # The fixed date is the earliest that the format knows.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[name])
    return content.getvalue()


def project_tree(root: Path) -> Tree:
    """Return what the rules need of the project in ``root``."""
    patterns = _patterns([".git/", *_lines(root / ".gitignore")])
    names = (path.relative_to(root).as_posix() for path in _walk(root, root, patterns))
    return Tree(frozenset(names), tuple(_lines(root / ".difyignore")))


def _patterns(lines: list[str]) -> pathspec.GitIgnoreSpec:
    return pathspec.GitIgnoreSpec.from_lines(line for line in lines if not line.startswith("!"))


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _walk(root: Path, folder: Path, ignored: pathspec.GitIgnoreSpec) -> Iterator[Path]:
    """Every file that no pattern matches; links are not followed."""
    for path in folder.iterdir():
        name = path.relative_to(root).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        if ignored.match_file(f"{name}/" if is_folder else name):
            continue
        if is_folder:
            yield from _walk(root, path, ignored)
        else:
            yield path


if __name__ == "__main__":
    sys.exit(main())
