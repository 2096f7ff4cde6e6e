"""Build the package as it would be submitted, and tell what stands in the way.

    python -m devtools.preflight [--root FOLDER] [--output FILE] [--release] [--no-start]

The owner's values come from HOLYSHEEP_REPO, HOLYSHEEP_CONTACT and HOLYSHEEP_AUTHOR and are written
into the package. Without them the rest is checked all the same, and they are listed; with
``--release`` a missing one fails. The exit code is 1 if anything fails, and no package is left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from devtools.package import PackageError, file_name, packed, packed_files, project_tree
from devtools.preflight.catalogue import findings
from devtools.preflight.examples import files_with_author, write_examples
from devtools.preflight.notes import notes
from devtools.preflight.opened import Package, Unreadable
from devtools.preflight.owner import Owner, plugin_author
from devtools.preflight.repackaging import repackaging_error
from devtools.preflight.report import Report, package_lines
from devtools.preflight.rule import Finding, Severity
from devtools.preflight.start import starts

__all__ = ["main"]

_EXAMPLES = "dist/examples"


def main(arguments: list[str] | None = None) -> int:
    """Run the preflight; returns the exit code."""
    parser = argparse.ArgumentParser(prog="devtools.preflight", description="Check the package.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--output", type=Path, help="default: dist/NAME-VERSION.difypkg")
    parser.add_argument("--release", action="store_true", help="fail without the owner's values")
    parser.add_argument("--no-start", action="store_true", help="do not install and start it")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    owner = Owner.from_environment(os.environ)
    try:
        output: Path = (options.output or root / "dist" / file_name(root)).resolve()
        output.unlink(missing_ok=True)
        shutil.rmtree(root / _EXAMPLES, ignore_errors=True)
        files = packed_files(root)
        author = plugin_author(files)
        content = packed(owner.applied(files))
        package = Package.opened(content, project_tree(root))
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    report = _report(package, owner, author, start=not options.no_start)
    print(f"{output.name}, by the rules of the marketplace")
    print("\n".join(report.lines()))
    fatal = [Severity.BLOCKS, Severity.WARNS]
    if options.release:
        fatal.append(Severity.OWNER)
    if report.findings(*fatal):
        print("\nNo package was written.", file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    print()
    print("\n".join(package_lines(output.name, content, len(package.entries))))
    print(f"Its place in the marketplace's repository: {_place(package, output.name)}")
    for line in _about_author(root, author, owner.author):
        print(line)
    return 0


def _report(package: Package, owner: Owner, author: str, *, start: bool) -> Report:
    groups = findings(package)
    if not owner.author:
        groups["Manifest"].append(
            Finding(
                Severity.OWNER,
                f"manifest.yaml has the author {author}: the handle under which the plugin is"
                " published, in HOLYSHEEP_AUTHOR.",
            )
        )
    report = Report(groups)
    with suppress(Unreadable):  # a rule has said so
        report.notes = list(notes(package))
    if cli := shutil.which("dify"):
        error = repackaging_error(package, cli)
        report.packager = [Finding(Severity.BLOCKS, error)] if error else []
    if start:
        report.starts = starts(package)
    return report


def _place(package: Package, name: str) -> str:
    manifest = package.manifest
    return f"{manifest['author']}/{manifest['name']}/{name}"


def _about_author(root: Path, old: str, new: str) -> list[str]:
    """Write the examples for a new author's plugin, and say what else names the old one."""
    if not new or new == old:
        return []
    written = write_examples(root, root / _EXAMPLES, old, new)
    return [
        f"{len(written)} examples that call {new}'s plugin: {_EXAMPLES}/",
        f"In the tree these still name {old}: {', '.join(files_with_author(root, old))}",
    ]


if __name__ == "__main__":
    sys.exit(main())
