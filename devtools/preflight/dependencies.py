"""requirements.txt and pyproject.toml: bounded, from the index, and the same versions in both."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from devtools.preflight.opened import dig
from devtools.preflight.rule import blocks, warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["requirement_lines"]

_SDK = "dify-plugin"
_OLDEST_SDK = (0, 9, 0)

_LARGE = {
    *("torch", "torchvision", "torchaudio", "tensorflow", "tensorflow-cpu", "jax", "transformers"),
    *("chromadb", "faiss-cpu", "faiss-gpu", "opencv-python", "opencv-python-headless", "spacy"),
    *("opencv-contrib-python", "paddlepaddle", "llama-cpp-python", "selenium", "pyppeteer"),
}
# Too large to ship, but not installed with the plugin: a group for development may have it.
_LARGE_AT_RUN_TIME = _LARGE | {"playwright"}

_REQUIREMENT = re.compile(
    r"""(?x)
    (?P<name> [A-Za-z0-9][A-Za-z0-9._-]*) \s* (\[[^\]]*\])? \s*
    (?P<bounds> [^;]*?) \s* (; .*)?
    """
)
_ELSEWHERE = re.compile(r"git\+|\b(https?|ftp|file)://|@", re.IGNORECASE)
_LOCAL = re.compile(r"-e\b|--editable\b|\.{0,2}/")
_LOWER = re.compile(r"[>=]=\s*(\d+(?:\.\d+)*)")
_BOUND = re.compile(r"[<>=!~]=?")
_PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( *;.+)?")


@blocks
def the_sdk_is_new_enough(package: Package) -> Iterator[str]:
    """The marketplace reads >= and ==, and nothing else."""
    wanted = ".".join(map(str, _OLDEST_SDK))
    for name in ("requirements.txt", "pyproject.toml"):
        lines = [line for place, line in _requirements(package) if place.startswith(name)]
        ours = [line for line in lines if _name(line) == _SDK]
        if not ours:
            yield f"{name} does not name {_SDK}; require {_SDK}>={wanted} at least."
        for line in ours:
            lower = _LOWER.search(line)
            if lower is None or tuple(map(int, lower[1].split("."))) < _OLDEST_SDK:
                yield f"{name} has {line!r}; write {_SDK}>={wanted} or newer, with >= or ==."


@blocks
def requirements_come_from_the_index(package: Package) -> Iterator[str]:
    """What an address serves may change after the review."""
    for place, line in _requirements(package):
        if _ELSEWHERE.search(line.partition(";")[0]):
            yield f"{place} has {line!r}; require a released version instead."


@warns
def requirements_are_no_local_paths(package: Package) -> Iterator[str]:
    """A path of the developer's machine leads nowhere elsewhere."""
    for place, line in _requirements(package):
        if _LOCAL.match(line):
            yield f"{place} has {line!r}; require a released version instead."


@blocks
def requirements_have_a_version(package: Package) -> Iterator[str]:
    """Without one, any release of it may break the plugin; groups for development count too."""
    for place, line in _requirements(package):
        if not _LOCAL.match(line) and not _BOUND.search(line.partition(";")[0]):
            yield f"{place} has {line!r} without a version; give a lower and an upper bound."


@warns
def requirements_have_an_upper_bound(package: Package) -> Iterator[str]:
    """The next large version is one that nobody has tried."""
    for place, line in _requirements(package):
        bounds = line.partition(";")[0]
        if re.search(r">", bounds) and not re.search(r"<|==", bounds):
            yield f"{place} has {line!r}; add an upper bound."


@blocks
def no_requirement_is_approximate(package: Package) -> Iterator[str]:
    """The marketplace does not read ~=."""
    for place, line in _requirements(package):
        if "~=" in line:
            yield f"{place} has {line!r}; write both bounds, with >= and <."


@warns
def requirements_are_small(package: Package) -> Iterator[str]:
    """Hundreds of megabytes take minutes to install."""
    for place, line in _requirements(package):
        large = _LARGE if "dependency-groups" in place else _LARGE_AT_RUN_TIME
        if _name(line) in large:
            yield f"{place} has {line!r}, which is large; do without it."


@blocks
def requirements_are_pinned(package: Package) -> Iterator[str]:
    """requirements.txt holds exact versions alone, those that were tested."""
    for line in requirement_lines(package.text("requirements.txt")):
        if not _PIN.fullmatch(line):
            yield f"requirements.txt has {line!r}, which is no exact version; pin it with ==."


@blocks
def both_files_install_the_same(package: Package) -> Iterator[str]:
    """The daemon takes either file, and must end with the same versions."""
    pins = requirement_lines(package.text("requirements.txt"))
    constraints = dig(package.toml("pyproject.toml"), "tool.uv.constraint-dependencies")
    if not constraints:
        yield "pyproject.toml has no tool.uv.constraint-dependencies; copy requirements.txt there."
    for pin in sorted(set(pins).symmetric_difference(constraints or pins)):
        place = "requirements.txt" if pin in pins else "pyproject.toml"
        yield f"{pin} is in {place} only; requirements and constraint-dependencies must be equal."


def requirement_lines(text: str) -> list[str]:
    """Return the lines of a requirements file, without comments."""
    lines = (re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _requirements(package: Package) -> Iterator[tuple[str, str]]:
    """Every requirement, of any file and group, behind the place where it stands."""
    for line in requirement_lines(package.text("requirements.txt")):
        yield "requirements.txt", line
    project = package.toml("pyproject.toml")
    lists: dict[str, Any] = {"project.dependencies": dig(project, "project.dependencies")}
    for table in ("project.optional-dependencies", "dependency-groups"):
        lists |= {f"{table}.{name}": one for name, one in (dig(project, table) or {}).items()}
    for name, lines in lists.items():
        for line in lines or ():
            if isinstance(line, str):  # the other form includes a group, which is read anyway
                yield f"pyproject.toml, {name},", line


def _name(requirement: str) -> str:
    """The normalised name of what is required."""
    found = _REQUIREMENT.match(requirement)
    return re.sub(r"[._-]+", "-", found["name"]).lower() if found else ""
