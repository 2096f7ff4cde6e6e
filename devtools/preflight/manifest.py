"""manifest.yaml: its fields as the marketplace and the daemon want them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from devtools.preflight.forges import FORGES, is_repository
from devtools.preflight.opened import Unreadable, dig
from devtools.preflight.rule import blocks, left_to_owner, warns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devtools.preflight.opened import Package

# repo and contact are the owner's; what is left out here has a rule of its own.
_REQUIRED = (
    *("author", "name", "version", "type", "icon", "plugins", "privacy", "created_at"),
    *("label.en_US", "description.en_US", "resource.memory"),
    *("meta.version", "meta.arch"),
    *("meta.runner.language", "meta.runner.version", "meta.runner.entrypoint"),
)

_PATTERNS = {
    "author": re.compile(r"[a-z0-9_-]{1,64}"),
    "name": re.compile(r"[a-z0-9_-]{1,128}"),
    "version": re.compile(r"\d{1,4}(\.\d{1,4}){2}(-\w{1,16})?"),
}

_EXACT = {
    "type": "plugin",
    "meta.runner.language": "python",
    "meta.runner.version": "3.12",  # the only one that the daemon runs
}

_ARCHES = {"amd64", "arm64"}
_MIN_STORAGE_BYTES, _MAX_STORAGE_BYTES = 1024, 2**30
_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", re.ASCII)


@blocks
def files_can_be_read(package: Package) -> Iterator[str]:
    """Declarations and documents are what their names say; the other rules rely on it."""
    readers: dict[str, Callable[[str], object]] = {
        ".yaml": package.yaml,
        ".toml": package.toml,
        ".md": package.text,
        ".txt": package.text,
    }
    for name in package.files:
        reader = readers.get(PurePosixPath(name).suffix)
        if reader is not None:
            try:
                reader(name)
            except Unreadable as error:
                yield f"{name} cannot be read: {error}; repair it."


@blocks
def required_fields_are_filled(package: Package) -> Iterator[str]:
    """A field that the marketplace or the daemon cannot do without has a value."""
    for field in _REQUIRED:
        if dig(package.manifest, field) in (None, "", [], {}):
            yield f"manifest.yaml has no {field}; fill it in."


@left_to_owner
def the_repository_is_named(package: Package) -> Iterator[str]:
    """The marketplace sends back what has no source to look at."""
    if not package.manifest.get("repo"):
        yield "manifest.yaml has no repo: the URL of the public source, in HOLYSHEEP_REPO."


@left_to_owner
def a_contact_is_named(package: Package) -> Iterator[str]:
    """The marketplace wants an address for its questions."""
    if not package.manifest.get("contact"):
        yield "manifest.yaml has no contact: an e-mail address, in HOLYSHEEP_CONTACT."


@blocks
def the_repository_is_on_a_known_forge(package: Package) -> Iterator[str]:
    """The field is a URL, nothing else, on a host that the marketplace admits."""
    repo = package.manifest.get("repo")
    if repo and not is_repository(str(repo)):
        yield (
            f"manifest.yaml: repo {repo!r} is no URL of a repository on {', '.join(FORGES)};"
            " give one."
        )


@blocks
def the_contact_is_an_address(package: Package) -> Iterator[str]:
    """The field is an e-mail address."""
    contact = package.manifest.get("contact")
    if contact and not _EMAIL.fullmatch(str(contact)):
        yield f"manifest.yaml: contact {contact!r} is no e-mail address; give one."


@blocks
def names_have_the_daemons_form(package: Package) -> Iterator[str]:
    """Author, name and version are what the daemon's schema takes."""
    for field, pattern in _PATTERNS.items():
        value = package.manifest.get(field)
        if value is not None and not pattern.fullmatch(str(value)):
            yield f"manifest.yaml: {field} {value!r} must have the form {pattern.pattern}."


@blocks
def the_author_is_not_dify(package: Package) -> Iterator[str]:
    """The names of Dify's makers are theirs, also as a part of another."""
    author = str(package.manifest.get("author"))
    for reserved in ("langgenius", "dify"):
        if reserved in author:
            yield f"manifest.yaml: author {author!r} must not contain {reserved!r}; use another."


@blocks
def fixed_fields_have_their_values(package: Package) -> Iterator[str]:
    """Type, language and version of Python have one value each."""
    for field, wanted in _EXACT.items():
        value = dig(package.manifest, field)
        if value is not None and value != wanted:
            yield f"manifest.yaml: {field} is {value!r}; it must be {wanted!r}, in quotes."


@blocks
def architectures_are_known(package: Package) -> Iterator[str]:
    """The daemon knows two."""
    for arch in dig(package.manifest, "meta.arch") or ():
        if arch not in _ARCHES:
            yield f"manifest.yaml: meta.arch has {arch!r}; allowed are {sorted(_ARCHES)}."


@blocks
def the_entrypoint_exists(package: Package) -> Iterator[str]:
    """The module that the daemon starts is in the package."""
    entrypoint = dig(package.manifest, "meta.runner.entrypoint")
    if entrypoint and f"{entrypoint}.py" not in package.files:
        yield f"manifest.yaml: the entrypoint {entrypoint!r} has no {entrypoint}.py; name it right."


@blocks
def resources_are_in_range(package: Package) -> Iterator[str]:
    """Memory is a number of bytes, and so is the storage, within what the daemon grants."""
    memory = dig(package.manifest, "resource.memory")
    if memory is not None and not (_is_number(memory) and memory > 0):
        yield f"manifest.yaml: resource.memory is {memory!r}; give a number of bytes."
    size = dig(package.manifest, "resource.permission.storage.size")
    if size is not None and not (
        _is_number(size) and _MIN_STORAGE_BYTES <= size <= _MAX_STORAGE_BYTES
    ):
        yield (
            f"manifest.yaml: resource.permission.storage.size is {size!r}; give"
            f" {_MIN_STORAGE_BYTES:,} to {_MAX_STORAGE_BYTES:,} bytes."
        )


@blocks
def the_date_is_in_the_past(package: Package) -> Iterator[str]:
    """created_at is a time with a zone (RFC 3339), and no plugin comes from the future."""
    created = package.manifest.get("created_at")
    if created is None:
        return
    if not isinstance(created, datetime) or created.tzinfo is None:
        yield f"manifest.yaml: created_at {created!s} must look like 2026-01-31T00:00:00Z."
    elif created > datetime.now(UTC):
        yield f"manifest.yaml: created_at {created.isoformat()} is in the future; give a past one."


@blocks
def the_privacy_policy_is_where_the_manifest_says(package: Package) -> Iterator[str]:
    """The field is a file in the package or an address on the web."""
    privacy = package.manifest.get("privacy")
    is_there = str(privacy).removeprefix("./") in package.files
    if privacy and not is_there and not str(privacy).startswith(("https://", "http://")):
        yield f"manifest.yaml: privacy names {privacy!r}, which is not in the package."


@warns
def the_oldest_dify_is_named(package: Package) -> Iterator[str]:
    """An older Dify then says so, instead of failing in the middle."""
    if not dig(package.manifest, "meta.minimum_dify_version"):
        yield "manifest.yaml has no meta.minimum_dify_version; name the oldest that works."


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
