"""README.md and its translations: what the marketplace page shows."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from devtools.preflight.forges import FORGES, link_to_source, links_to_repositories
from devtools.preflight.rule import blocks, left_to_owner, warns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devtools.preflight.opened import Package

__all__ = ["LINK", "documents", "relative_target"]

LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<after>[^)]*\))")
"""A link or a picture in Markdown."""

_HAN = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
_OTHER_SCRIPTS = re.compile("[\u3040-\u30ff\uac00-\ud7a3]")  # kana and hangul

# What the marketplace looks for, as words in the text.
_SUBJECTS = {
    "how it is set up": r"set ?up|install|configur",
    "how it is used": r"\bus(e|es|age|ing)\b|example|workflow",
    "what key or credential it needs": r"api.?key|credential|token",
    "what it connects to": r"connect|endpoint|base.url|\bhosts?\b",
}

# What its authors' guide wants as sections, as words in headings.
_SECTIONS = {
    "Features": r"feature|what (it|you)|nodes\b",
    "Setup": r"set ?up|install|configur|start",
    "Usage": r"usage|\buse\b|example|workflow",
    "Privacy": r"privacy",
}

_TRANSLATION = re.compile(r"readme/README_([a-z]{2}_[A-Za-z]{2,})\.md")
_LANGUAGES = {"zh_Hans", "ja_JP", "pt_BR"}


@left_to_owner
def the_readme_names_the_source(package: Package) -> Iterator[str]:
    """A reader of the marketplace page finds the source."""
    if not links_to_repositories(package.text("README.md")):
        yield (
            f"README.md names no repository on {', '.join(FORGES)}; it is written in from"
            " HOLYSHEEP_REPO."
        )


@blocks
def the_readme_has_no_han_characters(package: Package) -> Iterator[str]:
    """Not even in code: the bot counts them all, and takes none."""
    for number, line in enumerate(package.text("README.md").splitlines(), start=1):
        if _HAN.search(line):
            yield f"README.md, line {number}, has Han characters; write English, or use readme/."


@blocks
def documents_are_in_english(package: Package) -> Iterator[str]:
    """No other document has them either, and none has kana or hangul."""
    for name in ("README.md", "PRIVACY.md", "CHANGELOG.md"):
        for number, line in enumerate(package.text(name).splitlines(), start=1):
            is_han = name != "README.md" and _HAN.search(line)
            if is_han or _OTHER_SCRIPTS.search(line):
                yield f"{name}, line {number}, is not in English; write English."


@warns
def the_readme_says_what_a_user_needs(package: Package) -> Iterator[str]:
    """Setup, usage, credentials and connections are spoken of."""
    text = package.text("README.md")
    for subject, words in _SUBJECTS.items():
        if not re.search(words, text, re.IGNORECASE):
            yield f"README.md does not say {subject}; write it."


@warns
def the_readme_has_the_usual_sections(package: Package) -> Iterator[str]:
    """A reader who knows other plugins finds the way by the headings."""
    headings = re.findall(r"^#{2,3} (.+)$", package.text("README.md"), re.MULTILINE)
    for section, words in _SECTIONS.items():
        if not any(re.search(words, heading, re.IGNORECASE) for heading in headings):
            yield f"README.md has no heading like {section!r}; add the section."


@warns
def links_lead_to_something(package: Package) -> Iterator[str]:
    """A link to a file of this project, relative or in its repository, names one that is there."""
    source = link_to_source(str(package.manifest.get("repo")), "")
    for name in documents(package.files):
        for found in LINK.finditer(package.text(name)):
            path = relative_target(name, found["target"])
            if found["target"].startswith(source):
                path = found["target"].removeprefix(source).partition("#")[0]
            if path is not None and path not in package.files and not package.tree.holds(path):
                yield f"{name} links to {found['target']}, which does not exist; correct the link."


@warns
def pictures_are_in_assets(package: Package) -> Iterator[str]:
    """Dify and the marketplace show no others of the package."""
    for name in documents(package.files):
        for found in LINK.finditer(package.text(name)):
            path = relative_target(name, found["target"])
            is_picture = found["before"].startswith("!")
            if is_picture and path is not None and not path.startswith("_assets/"):
                yield f"{name} shows {found['target']}; move the picture into _assets/."


@blocks
def translations_are_named_right(package: Package) -> Iterator[str]:
    """Dify shows readme/README_zh_Hans.md and the like, and nothing else."""
    for name in package.files:
        is_translation = name.startswith("readme/") or (
            re.fullmatch(r"README[._-].+\.md", name, re.IGNORECASE) is not None
        )
        found = _TRANSLATION.fullmatch(name)
        if is_translation and (found is None or found[1] not in _LANGUAGES):
            wanted = ", ".join(f"readme/README_{one}.md" for one in sorted(_LANGUAGES))
            yield f"{name} is not shown by Dify; call it one of {wanted}."


def documents(names: Iterable[str]) -> list[str]:
    """Return README.md and its translations, of the names of files."""
    return sorted(n for n in names if n == "README.md" or re.fullmatch(r"readme/.*\.md", n))


def relative_target(document: str, target: str) -> str | None:
    """Return the file that a link in ``document`` leads to, relative to the root.

    None for an address on the web and for a place in the same document. Dify and the marketplace
    count ``_assets/`` from the root in every document.
    """
    path = target.partition("#")[0]
    if not path or re.match(r"[a-z][a-z0-9+.-]*:|//", path, re.IGNORECASE):
        return None
    is_asset = re.match(r"(\./)?_assets/", path)
    return posixpath.normpath(path if is_asset else f"{posixpath.dirname(document) or '.'}/{path}")
