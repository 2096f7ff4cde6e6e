"""Icons: the plugin's own pictures, which load nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from devtools.preflight.opened import dig
from devtools.preflight.rule import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["named_icons"]

_LONGEST_NAME = 128
_PNG = b"\x89PNG\r\n\x1a\n"
_TEMPLATE_MARK = "DIFY_MARKETPLACE_TEMPLATE_ICON_DO_NOT_USE"
_SVG = "{http://www.w3.org/2000/svg}svg"
# Elements that run, load or hold foreign content.
_ACTIVE = {"script", "foreignObject", "image", "iframe", "use", "style", "a", "animate", "set"}


@blocks
def icons_are_named(package: Package) -> Iterator[str]:
    """Manifest and providers name one, with a name that the daemon takes."""
    owners = {"manifest.yaml": package.manifest.get("icon")}
    owners |= {name: dig(one, "identity.icon") for name, one in package.providers.items()}
    for name, icon in owners.items():
        if not icon:
            yield f"{name} names no icon; name a file of _assets/."
        elif len(str(icon)) > _LONGEST_NAME:
            yield f"{name}: the icon's name has more than {_LONGEST_NAME} characters; shorten it."


@blocks
def icons_are_pictures(package: Package) -> Iterator[str]:
    """An icon is an SVG with a viewBox, or a PNG."""
    for name, content in _icons(package):
        if name.endswith(".svg"):
            root = _root(content)
            if root is None or root.tag != _SVG or "viewBox" not in root.attrib:
                yield f"{name} is no SVG picture with a viewBox; draw it anew."
        elif not (name.endswith(".png") and content.startswith(_PNG)):
            yield f"{name} is neither an SVG nor a PNG picture; convert it."


@blocks
def icons_are_not_the_template(package: Package) -> Iterator[str]:
    """The pictures that `dify plugin init` writes carry a mark."""
    for name, content in _icons(package):
        if _TEMPLATE_MARK.encode() in content:
            yield f"{name} is the template's picture; draw one of your own."


@blocks
def icons_load_nothing(package: Package) -> Iterator[str]:
    """A picture that fetches or runs something would do so in every user's browser."""
    for name, content in _icons(package):
        root = _root(content) if name.endswith(".svg") else None
        for element in root.iter() if root is not None else ():
            tag = element.tag.rpartition("}")[2]
            values = " ".join([*element.attrib.values(), element.text or ""])
            keys = {key.rpartition("}")[2] for key in element.attrib}
            if tag in _ACTIVE or "href" in keys or re.search(r"url\(|https?:|data:", values):
                yield f"{name} has a <{tag}> that loads something; draw it with shapes alone."
            elif any(key.startswith("on") for key in keys):
                yield f"{name} has a <{tag}> that runs something; draw it with shapes alone."


def named_icons(package: Package) -> Iterator[tuple[str, str]]:
    """Yield each icon that is named, behind the file that names it."""
    owners = {"manifest.yaml": package.manifest}
    owners |= {name: one.get("identity") or {} for name, one in package.providers.items()}
    for owner, declared in owners.items():
        yield from ((owner, str(declared[k])) for k in ("icon", "icon_dark") if declared.get(k))


def _icons(package: Package) -> Iterator[tuple[str, bytes]]:
    """Every icon that is named and there, once."""
    for name in sorted({f"_assets/{icon}" for _, icon in named_icons(package)}):
        if name in package.files:
            yield name, package.files[name]


def _root(content: bytes) -> ET.Element | None:
    """The root element, None if it is no XML or has a document type, which may name entities."""
    if b"<!" in content.replace(b"<!--", b""):
        return None
    try:
        return ET.fromstring(content)  # noqa: S314 - without a document type it cannot expand
    except ET.ParseError:
        return None
