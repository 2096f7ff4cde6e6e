"""Build the plugin package, open it again, and check what is in it.

    python -m devtools.package [--root FOLDER] [--output FILE] [--no-cli]

Uses the ``dify`` command line where it is on PATH, and else writes the same kind of archive
itself: what `.difyignore` leaves of the tree, sorted, without dates, modes or compression, so that
the same files give the same bytes on every machine.

The checks are those that stop an installation or a submission to the marketplace (its rules of
Aug 2026), and what would make an installed plugin fail: a source that a YAML file names and the
package lacks. Every violation is one sentence on stderr, and the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pathspec
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PackageError", "build", "check", "main"]

MAX_PACKAGE_BYTES = 15 * 1024 * 1024
"""What Dify's API takes by default; the marketplace and the daemon would take 50 MB."""

MAX_UNPACKED_BYTES = 50 * 1024 * 1024
"""The limit of the daemon, the packager and the marketplace for all files together."""

MAX_FILES = 5000
"""The marketplace's limit."""

_REQUIRED = (
    "manifest.yaml",
    "main.py",
    "holysheep/__init__.py",
    "holysheep/prices.yaml",
    "requirements.txt",
    "pyproject.toml",
    "README.md",
    "PRIVACY.md",
    "LICENSE",
)

_FORBIDDEN_FOLDERS = frozenset(
    {
        *("tests", "devtools", "examples", "scripts", "docs", "build", "dist"),
        *(".git", ".github", ".ci", ".hg", ".svn", ".idea", ".vscode"),
        *(".venv", "venv", "env", "node_modules", ".tox", ".nox"),
        *("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"),
    }
)

_FORBIDDEN_FILES = re.compile(
    r"""(?x)
    \.env(?!\.(example|sample|template)$)(\..*)? | \.DS_Store | Thumbs\.db | desktop\.ini
    | \.gitconfig | id_rsa | uv\.lock | \.coverage
    | .*\.(key|pem|p12|pfx|pyc|pyo|log|tmp|swp|swo|bak|so|dll|dylib|exe|pyd|node|difypkg)
    """
)

_KEY_LIKE = re.compile(
    rb"""(?x)
    \bsk-[A-Za-z0-9_-]{20,} | \bgh[pousr]_[A-Za-z0-9]{20,} | \bxox[abprs]-[A-Za-z0-9-]{10,}
    | \bAKIA[0-9A-Z]{16}\b | \beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----
    """
)

_PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( *;.+)?")


class PackageError(Exception):
    """The package could not be built; the text is one sentence for the developer."""


def main(arguments: list[str] | None = None) -> int:
    """Build and check the package; returns the exit code."""
    parser = argparse.ArgumentParser(prog="devtools.package", description="Build the package.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--output", type=Path, help="default: dist/NAME-VERSION.difypkg")
    parser.add_argument("--no-cli", action="store_true", help="do not use the dify command line")
    options = parser.parse_args(arguments)
    root: Path = options.root.resolve()
    try:
        output: Path = (options.output or root / "dist" / _file_name(root)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        build(root, output, cli=None if options.no_cli else shutil.which("dify"))
        violations = list(check(output, root))
        if violations:
            output.unlink()  # so that nobody installs it
    except PackageError as error:
        violations = [str(error)]
    for violation in violations:
        print(violation, file=sys.stderr)
    if violations:
        return 1
    with zipfile.ZipFile(output) as archive:
        count = len(archive.namelist())
    content = output.read_bytes()
    print(f"{output.name}: {len(content):,} bytes, {count} files")
    print(f"sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


def build(root: Path, output: Path, *, cli: str | None) -> None:
    """Write the package of the plugin in ``root`` to ``output``.

    ``cli`` is the path of Dify's command line, None to do without it. Raises PackageError; an
    old file at ``output`` is gone then.
    """
    output.unlink(missing_ok=True)
    if cli is None:
        _write_archive(root, output)
        return
    done = subprocess.run(
        [cli, "plugin", "package", ".", "-o", str(output)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 or not output.is_file():
        said = " ".join((done.stdout + done.stderr).split())
        raise PackageError(f"{cli} did not build the package: {said}")


def check(package: Path, root: Path) -> Iterator[str]:
    """Yield one sentence for each rule that ``package``, built from ``root``, breaks."""
    try:
        yield from _check(package, root)
    except PackageError as error:  # a file that cannot be read ends the checks
        yield str(error)


def _check(package: Path, root: Path) -> Iterator[str]:
    with zipfile.ZipFile(package) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        files = {info.filename: archive.read(info) for info in infos}
    yield from _check_sizes(package, infos)
    yield from _check_names(infos)
    yield from _check_contents(files)
    yield from _check_presence(files, root)
    yield from _check_references(files)
    yield from _check_pins(files)


# --- building ---


def _write_archive(root: Path, output: Path) -> None:
    names = sorted(_packaged_names(root))
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            # The fixed date is the earliest that the format knows.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o644 << 16
            archive.writestr(info, (root / name).read_bytes())


def _packaged_names(root: Path) -> Iterator[str]:
    """Yield the files that the daemon's packager would take, as paths relative to ``root``.

    It reads `.difyignore`, or `.gitignore` if there is none, tries each pattern for itself, and
    leaves out whatever one of them matches. A negated pattern (``!``) therefore does nothing.
    Ignore files in subfolders are not read, and `.git` is nothing special.
    """
    ignore_file = root / ".difyignore"
    if not ignore_file.is_file():
        ignore_file = root / ".gitignore"
    text = ignore_file.read_text(encoding="utf-8") if ignore_file.is_file() else ""
    patterns = [line.strip() for line in text.splitlines()]
    ignored = pathspec.GitIgnoreSpec.from_lines(p for p in patterns if not p.startswith("!"))

    def walk(folder: Path) -> Iterator[str]:
        for path in folder.iterdir():
            name = path.relative_to(root).as_posix()
            is_folder = path.is_dir() and not path.is_symlink()
            if ignored.match_file(name + "/" if is_folder else name):
                continue
            if path.is_symlink():
                raise PackageError(f"{name} is a symbolic link; the package can hold files only.")
            if is_folder:
                yield from walk(path)
            else:
                yield name

    return walk(root)


# --- checking ---


def _check_sizes(package: Path, infos: list[zipfile.ZipInfo]) -> Iterator[str]:
    packed, unpacked = package.stat().st_size, sum(info.file_size for info in infos)
    if packed > MAX_PACKAGE_BYTES:
        yield f"The package has {packed:,} bytes; {MAX_PACKAGE_BYTES:,} are allowed."
    if unpacked > MAX_UNPACKED_BYTES:
        yield f"Unpacked, the files have {unpacked:,} bytes; {MAX_UNPACKED_BYTES:,} are allowed."
    if len(infos) > MAX_FILES:
        yield f"The package has {len(infos):,} files; {MAX_FILES:,} are allowed."


def _check_names(infos: list[zipfile.ZipInfo]) -> Iterator[str]:
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        path = PurePosixPath(name)
        if name in seen:
            yield f"{name} is in the package twice."
        seen.add(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            yield f"{name} does not lie inside the package."
        for folder in _FORBIDDEN_FOLDERS.intersection(path.parts[:-1]):
            yield f"{name} must not be packaged: {folder}/ is for development."
        if _FORBIDDEN_FILES.fullmatch(path.name):
            yield f"{name} must not be packaged."
        if (info.external_attr >> 16) & 0o111:
            yield f"{name} is executable; a package holds no programs."


def _check_contents(files: Mapping[str, bytes]) -> Iterator[str]:
    for name, content in files.items():
        if found := _KEY_LIKE.search(content):
            line = content.count(b"\n", 0, found.start()) + 1
            yield f"{name}, line {line}, has a string that looks like a key."
        if name.endswith(".py"):
            try:
                compile(content, name, "exec", dont_inherit=True)
            except (SyntaxError, ValueError) as error:
                yield f"{name} does not compile: {error}."


def _check_presence(files: Mapping[str, bytes], root: Path) -> Iterator[str]:
    for name in _REQUIRED:
        if not files.get(name):
            yield f"{name} is missing or empty in the package."
    for path in sorted((root / "holysheep").rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in path.parts and name not in files:
            yield f"{name} belongs to the engine but is not in the package."


def _check_references(files: Mapping[str, bytes]) -> Iterator[str]:
    """What the manifest names must be there: providers, nodes, endpoints, sources, icons."""
    manifest = _parse(files, "manifest.yaml")
    wanted: list[tuple[str, str]] = [("manifest.yaml", f"_assets/{manifest.get('icon')}")]
    if manifest.get("icon_dark"):
        wanted.append(("manifest.yaml", f"_assets/{manifest['icon_dark']}"))
    plugins: dict[str, list[str]] = manifest.get("plugins") or {}
    if not plugins.get("tools"):
        yield "manifest.yaml names no tool provider."
    for provider_name in plugins.get("tools") or ():
        wanted.append(("manifest.yaml", provider_name))
        provider = _parse(files, provider_name)
        identity: dict[str, Any] = provider.get("identity") or {}
        wanted.append((provider_name, f"_assets/{identity.get('icon')}"))
        if identity.get("icon_dark"):
            wanted.append((provider_name, f"_assets/{identity['icon_dark']}"))
        wanted.append((provider_name, _source(provider)))
        if not provider.get("tools"):
            yield f"{provider_name} names no nodes."
        for node_name in provider.get("tools") or ():
            wanted.append((provider_name, node_name))
            wanted.append((node_name, _source(_parse(files, node_name))))
    for group_name in plugins.get("endpoints") or ():
        wanted.append(("manifest.yaml", group_name))
        for endpoint_name in _parse(files, group_name).get("endpoints") or ():
            wanted.append((group_name, endpoint_name))
            wanted.append((endpoint_name, _source(_parse(files, endpoint_name))))
    for referrer, name in wanted:
        if name not in files and referrer in files:
            yield f"{referrer} names {name}, which is not in the package."


def _check_pins(files: Mapping[str, bytes]) -> Iterator[str]:
    """Both ways in which the daemon may install must end in the same versions."""
    try:
        project = tomllib.loads(files.get("pyproject.toml", b"").decode())
    except ValueError as error:
        yield f"pyproject.toml cannot be read: {error}."
        return
    lines = [line.strip() for line in files.get("requirements.txt", b"").decode().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    for pin in pins:
        if not _PIN.fullmatch(pin):
            yield f"requirements.txt has {pin!r}, which is no exact version."
    constraints = project.get("tool", {}).get("uv", {}).get("constraint-dependencies", [])
    unequal = set(pins).symmetric_difference(constraints) if pins and constraints else ()
    if not constraints:
        yield "pyproject.toml has no constraint-dependencies, which hold the pins for uv."
    for pin in sorted(unequal):
        place = "requirements.txt" if pin in pins else "pyproject.toml"
        yield f"{pin} is in {place} only; requirements and constraint-dependencies must be equal."
    ours, theirs = (
        project.get("project", {}).get("version"),
        _parse(files, "manifest.yaml").get("version"),
    )
    if ours != theirs:
        yield f"The version is {ours} in pyproject.toml and {theirs} in manifest.yaml."


# --- reading ---


def _source(declaration: Mapping[str, Any]) -> str:
    """The Python file that a provider, node or endpoint names; "no source" if it names none."""
    extra: dict[str, Any] = declaration.get("extra") or {}
    return str((extra.get("python") or {}).get("source") or "no source")


def _parse(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The YAML mapping in a packaged file; empty if the file is missing or is none."""
    try:
        value = yaml.safe_load(files.get(name, b""))
    except yaml.YAMLError as error:
        raise PackageError(f"{name} is no YAML: {' '.join(str(error).split())}") from error
    return value if isinstance(value, dict) else {}


def _file_name(root: Path) -> str:
    """NAME-VERSION.difypkg, from the manifest in ``root``."""
    path = root / "manifest.yaml"
    if not path.is_file():
        raise PackageError(f"There is no manifest.yaml in {root}.")
    manifest = _parse({path.name: path.read_bytes()}, path.name)
    return f"{manifest.get('name')}-{manifest.get('version')}.difypkg"


if __name__ == "__main__":
    sys.exit(main())
