"""What is in the package: no more than the plugin needs at run time, and no programs."""

from __future__ import annotations

import re
import stat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from devtools.preflight.rule import blocks, warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

MAX_PACKAGE_BYTES = 15 * 1024 * 1024
"""What Dify's API takes by default; the marketplace and the daemon would take 50 MB."""

MAX_UNPACKED_BYTES = 50 * 1024 * 1024
"""The limit of the daemon, the packager and the marketplace for all files together."""

MAX_FILE_BYTES = 1024 * 1024
"""The largest file that the marketplace's scan for secrets reads."""

MAX_FILES = 5000
"""The marketplace's limit."""

_REQUIRED = (
    "manifest.yaml",
    "main.py",
    "holysheep/__init__.py",
    "requirements.txt",
    "pyproject.toml",
    "README.md",
    "PRIVACY.md",
    "CHANGELOG.md",
    "LICENSE",
)

_FOLDERS = frozenset(
    {"_assets", "endpoints", "group", "holysheep", "host", "nodes", "provider", "readme"}
)

_FOLDERS_OF_TOOLS = frozenset(
    {
        *(".git", ".github", ".ci", ".hg", ".svn", ".idea", ".vscode"),
        *(".venv", "venv", "env", "node_modules", ".tox", ".nox", "build", "dist"),
        *("__pycache__", "pycache", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"),
    }
)

_FILES_OF_TOOLS = re.compile(
    r"""(?x)
    \.env(?!\.(example|sample|template)$)(\..*)? | \.DS_Store | Thumbs\.db | desktop\.ini
    | \.gitconfig | id_rsa | uv\.lock | \.coverage
    | .*\.(key|pem|p12|pfx|pyc|pyo|log|tmp|swp|swo|bak|difypkg)
    """
)

_ARCHIVES = re.compile(r".*\.(zip|tar|gz|tgz|bz2|xz|7z|rar)", re.IGNORECASE)

_PROGRAM_NAMES = re.compile(
    r".*\.(so|dll|dylib|exe|pyd|node) | dify-plugin-(linux|darwin|windows)-.*",
    re.IGNORECASE | re.VERBOSE,
)

_SCRIPT_NAMES = re.compile(r".*\.(sh|bin|run|command|app)", re.IGNORECASE)

_MACH_O = ("feedface", "feedfacf", "cefaedfe", "cffaedfe", "cafebabe", "cafebabf")
_MAGIC = {b"\x7fELF": "ELF", b"MZ": "PE", **{bytes.fromhex(start): "Mach-O" for start in _MACH_O}}

# What the packager's patterns can express without surprise: it tries each line for itself, so a
# negated one does nothing, and it looks into no other ignore file.
_IGNORE_LINE = re.compile(r"[\w.*-]+/?")


@blocks
def the_package_is_small(package: Package) -> Iterator[str]:
    """Dify takes it with its default settings."""
    if package.size_bytes > MAX_PACKAGE_BYTES:
        yield (
            f"The package has {package.size_bytes:,} bytes, and {MAX_PACKAGE_BYTES:,} are allowed;"
            " leave out what is large."
        )


@blocks
def the_unpacked_files_are_small(package: Package) -> Iterator[str]:
    """All files together stay under the limit."""
    unpacked = sum(len(entry.content) for entry in package.entries)
    if unpacked > MAX_UNPACKED_BYTES:
        yield (
            f"Unpacked, the files have {unpacked:,} bytes, and {MAX_UNPACKED_BYTES:,} are allowed;"
            " leave out what is large."
        )


@warns
def each_file_is_small(package: Package) -> Iterator[str]:
    """The scan for secrets leaves out a larger one, and says so."""
    for entry in package.entries:
        if len(entry.content) > MAX_FILE_BYTES:
            yield f"{entry.name} has more than {MAX_FILE_BYTES:,} bytes; make it smaller."


@blocks
def the_files_are_few(package: Package) -> Iterator[str]:
    """Their number stays under the limit."""
    if len(package.entries) > MAX_FILES:
        yield (
            f"The package has {len(package.entries):,} files, and {MAX_FILES:,} are allowed;"
            " leave out what is not needed at run time."
        )


@blocks
def names_are_unique(package: Package) -> Iterator[str]:
    """Nothing is in the archive twice."""
    seen: set[str] = set()
    for entry in package.entries:
        if entry.name in seen:
            yield f"{entry.name} is in the package twice; build it anew."
        seen.add(entry.name)


@blocks
def names_lie_inside_the_package(package: Package) -> Iterator[str]:
    """No file unpacks elsewhere."""
    for name in package.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            yield f"{name} does not lie inside the package; use relative names with slashes."


@blocks
def folders_are_those_of_the_plugin(package: Package) -> Iterator[str]:
    """No tests, tools, documents or examples: the marketplace wants what runs, and no more."""
    tops = {PurePosixPath(name).parts[0] for name in package.files if "/" in name}
    for folder in sorted(tops - _FOLDERS):
        yield f"{folder}/ is not needed at run time; name it in .difyignore."


@blocks
def folders_of_tools_stay_out(package: Package) -> Iterator[str]:
    """No version control, environment or cache, at any depth."""
    for name in package.files:
        for folder in sorted(_FOLDERS_OF_TOOLS.intersection(PurePosixPath(name).parts[:-1])):
            yield f"{name} must not be packaged; name {folder}/ in .difyignore."


@blocks
def files_of_tools_stay_out(package: Package) -> Iterator[str]:
    """No secrets, logs, compiled files or leftovers."""
    for name in package.files:
        if _FILES_OF_TOOLS.fullmatch(PurePosixPath(name).name):
            yield f"{name} must not be packaged; name it in .difyignore."


@warns
def archives_stay_out(package: Package) -> Iterator[str]:
    """Nobody sees what is in them."""
    for name in package.files:
        if _ARCHIVES.fullmatch(name):
            yield f"{name} is an archive; package what is in it, or leave it out."


@blocks
def native_programs_stay_out(package: Package) -> Iterator[str]:
    """Neither by their first bytes nor by their names."""
    for name, content in package.files.items():
        kinds = [kind for magic, kind in _MAGIC.items() if content.startswith(magic)]
        if kinds:
            yield f"{name} is a program ({kinds[0]}); a package holds sources only, leave it out."
        elif _PROGRAM_NAMES.fullmatch(PurePosixPath(name).name):
            yield f"{name} is named like a program; a package holds sources only, leave it out."


@warns
def scripts_stay_out(package: Package) -> Iterator[str]:
    """Nothing is started but main.py."""
    for name in package.files:
        if _SCRIPT_NAMES.fullmatch(name):
            yield f"{name} is named like a script or an installer; leave it out."


@warns
def nothing_is_executable(package: Package) -> Iterator[str]:
    """Dify starts main.py through Python."""
    for entry in package.entries:
        if entry.mode & 0o111 and not stat.S_ISLNK(entry.mode):
            yield f"{entry.name} is executable; chmod -x {entry.name}."


@blocks
def nothing_is_a_link(package: Package) -> Iterator[str]:
    """A symbolic link may lead out of the package."""
    for entry in package.entries:
        if stat.S_ISLNK(entry.mode):
            yield f"{entry.name} is a symbolic link; package the file that it leads to."


@blocks
def required_files_are_there(package: Package) -> Iterator[str]:
    """What the marketplace, the daemon or the plugin cannot do without."""
    for name in _REQUIRED:
        if not package.files.get(name, b"").strip():
            yield f"{name} is missing or empty; see whether .difyignore leaves it out."


@blocks
def the_engine_is_complete(package: Package) -> Iterator[str]:
    """A pattern in .difyignore must not catch a module, a script or a page."""
    for name in sorted(package.tree.files):
        if name.startswith("holysheep/") and name not in package.files:
            yield f"{name} belongs to the engine but is not packaged; see .difyignore."


@blocks
def ignore_lines_are_plain(package: Package) -> Iterator[str]:
    """The packager does nothing with a negated line, and a comment would be a pattern."""
    for line in package.tree.ignore_lines:
        if not _IGNORE_LINE.fullmatch(line):
            yield f".difyignore has {line!r}, which the packager may read otherwise; write names."
