"""What only the plugin's owner can give, and where it goes in the package.

Three environment variables: HOLYSHEEP_REPO, the URL of the public source; HOLYSHEEP_CONTACT, an
e-mail address; HOLYSHEEP_AUTHOR, the handle under which the plugin is published. The tree stays as
it is: they are written into what is packaged.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from devtools.preflight.forges import link_to_source
from devtools.preflight.readme import LINK, documents, relative_target

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Owner", "plugin_author"]

_AUTHOR = re.compile(r"^(?P<key>[ \t]*author:[ \t]*)(?P<handle>\S+)[ \t]*$", re.MULTILINE)
_FIRST_HEADING = re.compile(r"^## ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner's values; empty where they are not given."""

    repo: str = ""
    contact: str = ""
    author: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the three variables."""
        names = ("HOLYSHEEP_REPO", "HOLYSHEEP_CONTACT", "HOLYSHEEP_AUTHOR")
        return cls(*(environment.get(name, "").strip() for name in names))

    def applied(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the files of the package with what is given written into them."""
        done = dict(files)
        for name in _owned(files):
            text = files[name].decode(errors="surrogateescape")  # a rule tells of such a file
            if name == "manifest.yaml":
                text = _with_field(text, "repo", self.repo)
                text = _with_field(text, "contact", self.contact)
            elif name.endswith(".md"):
                text = self._with_source(name, text)
            if self.author and name.endswith(".yaml"):
                text = renamed_author(text, plugin_author(files), self.author)
            done[name] = text.encode(errors="surrogateescape")
        return done

    def _with_source(self, name: str, text: str) -> str:
        """Name the repository, and make links absolute.

        On the marketplace's page relative ones lead nowhere, but to pictures in _assets/.
        """
        if not self.repo:
            return text

        def absolute(found: re.Match[str]) -> str:
            path = relative_target(name, found["target"])
            if path is None:
                return found.group()
            _, mark, place = found["target"].partition("#")
            target = path if path.startswith("_assets/") else link_to_source(self.repo, path)
            return f"{found['before']}{target}{mark}{place}{found['after']}"

        linked = LINK.sub(absolute, text)
        if name != "README.md" or self.repo in text:
            return linked
        start = first.start() if (first := _FIRST_HEADING.search(linked)) else len(linked)
        return f"{linked[:start]}Source code and issues: <{self.repo}>\n\n{linked[start:]}"


def plugin_author(files: Mapping[str, bytes]) -> str:
    """Return the handle in the manifest, empty if there is none."""
    found = _AUTHOR.search(files.get("manifest.yaml", b"").decode(errors="replace"))
    return found["handle"] if found else ""


def renamed_author(text: str, old: str, new: str) -> str:
    """Return a declaration with another author."""
    return _AUTHOR.sub(
        lambda found: found["key"] + (new if found["handle"] == old else found["handle"]), text
    )


def _owned(files: Mapping[str, bytes]) -> list[str]:
    """The files in which something of the owner's stands."""
    declared = [name for name in files if re.fullmatch(r"(provider|nodes)/\w+\.yaml", name)]
    manifest = [name for name in files if name == "manifest.yaml"]
    return [*manifest, *declared, *documents(files)]


def _with_field(text: str, field: str, value: str) -> str:
    """The manifest with a top-level field set; unchanged without a value."""
    if not value:
        return text
    line = f"{field}: {json.dumps(value, ensure_ascii=False)}\n"  # a JSON text is a YAML text
    there = re.compile(rf"^{field}:.*\n", re.MULTILINE)
    if there.search(text):
        return there.sub(lambda _: line, text)
    return re.sub(r"^name:", lambda found: line + found.group(), text, count=1, flags=re.MULTILINE)
