"""Providers, nodes and endpoints: complete, in the daemon's schema, and in four languages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from devtools.preflight.icons import named_icons
from devtools.preflight.opened import declaration_files, dig
from devtools.preflight.rule import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from devtools.preflight.opened import Package

_KINDS = {"tools", "endpoints"}  # the only two kinds that may stand in one manifest

_TAGS = {
    *("search", "image", "videos", "weather", "finance", "design", "travel", "social", "news"),
    *("medical", "productivity", "education", "business", "entertainment", "utilities", "agent"),
    *("rag", "other", "trigger"),
}

_LANGUAGES = ("en_US", "zh_Hans", "pt_BR", "ja_JP")
_TEXT_KEYS = {"label", "human", "human_description", "placeholder", "help"}
_LONGEST_TEXT = 1023  # characters
_LONGEST_PATH = 128
_LONGEST_OPTION = 127
_MAX_SETTINGS = 64

_IDENTITY = re.compile(r"[A-Za-z0-9_-]+")
_PARAMETER_KEYS = ("name", "label", "human_description", "type", "form")
_PARAMETER_TYPES = {
    *("string", "number", "boolean", "select", "secret-input", "file", "files", "app-selector"),
    *("model-selector", "any", "dynamic-select", "array", "object", "checkbox", "date"),
    "date-range",
}
_FORMS = {"llm", "form", "schema"}
_SETTING_TYPES = {
    *("secret-input", "text-input", "select", "boolean", "model-selector", "app-selector"),
    "array[tools]",
}
_SCOPED = {"app-selector", "model-selector", "any"}
_METHODS = {"HEAD", "GET", "POST", "PUT", "DELETE", "OPTIONS"}


@blocks
def declared_files_are_there(package: Package) -> Iterator[str]:
    """Declarations, sources and icons that a file names are in the package."""
    for referrer, name in _references(package):
        if name not in package.files:
            yield f"{referrer} names {name}, which is not in the package; name it right."


@blocks
def declared_paths_are_short(package: Package) -> Iterator[str]:
    """The daemon cuts nothing; it refuses."""
    for referrer, name in _references(package):
        if len(name) > _LONGEST_PATH:
            yield f"{referrer} names {name}: a path has {_LONGEST_PATH} characters at most."


@blocks
def the_plugin_has_nodes(package: Package) -> Iterator[str]:
    """The manifest names a tool provider, and that one nodes."""
    if not dig(package.manifest, "plugins.tools"):
        yield "manifest.yaml names no tool provider under plugins.tools; name it."
    for name, provider in package.providers.items():
        if not provider.get("tools"):
            yield f"{name} names no nodes under tools; name them."


@blocks
def kinds_may_stand_together(package: Package) -> Iterator[str]:
    """Tools and endpoints are the only mix that the daemon takes."""
    for kind in sorted(set(package.manifest.get("plugins") or ()) - _KINDS):
        yield f"manifest.yaml: plugins.{kind} must not stand beside tools; move it elsewhere."


@blocks
def there_is_one_provider_and_one_group(package: Package) -> Iterator[str]:
    """Of several the daemon keeps the last, without a word."""
    for kind in sorted(_KINDS):
        names = dig(package.manifest, f"plugins.{kind}") or ()
        if len(names) > 1:
            yield f"manifest.yaml: plugins.{kind} has {len(names)} files; the daemon takes one."


@blocks
def identities_are_complete(package: Package) -> Iterator[str]:
    """Providers and nodes have a name that the daemon takes, an author and a label."""
    for name, declaration in {**package.providers, **package.nodes}.items():
        identity = declaration.get("identity") or {}
        for key in ("author", "label"):
            if not identity.get(key):
                yield f"{name}: identity has no {key}; fill it in."
        if not _IDENTITY.fullmatch(str(identity.get("name") or "")):
            yield f"{name}: identity.name must consist of letters, digits, _ and -."


@blocks
def one_author_everywhere(package: Package) -> Iterator[str]:
    """The author of providers and nodes is that of the manifest."""
    wanted = package.manifest.get("author")
    for name, declaration in {**package.providers, **package.nodes}.items():
        author = dig(declaration, "identity.author")
        if author != wanted:
            yield f"{name}: identity.author is {author!r}; manifest.yaml has {wanted!r}."


@blocks
def tags_are_known(package: Package) -> Iterator[str]:
    """The host has a list, and refuses others."""
    tagged = {"manifest.yaml": package.manifest.get("tags")}
    tagged |= {name: dig(one, "identity.tags") for name, one in package.providers.items()}
    for name, tags in tagged.items():
        for tag in tags or ():
            if tag not in _TAGS:
                yield f"{name}: the tag {tag!r} is unknown; take one of {', '.join(sorted(_TAGS))}."


@blocks
def texts_have_all_languages(package: Package) -> Iterator[str]:
    """English is required; the other three are this project's own rule."""
    for name, place, text in _texts(package):
        missing = [one for one in _LANGUAGES if not str(text.get(one) or "").strip()]
        if missing:
            yield f"{name}: {place} lacks {', '.join(missing)}; translate it."


@blocks
def texts_are_short(package: Package) -> Iterator[str]:
    """The daemon refuses a longer one."""
    for name, place, text in _texts(package):
        for language, value in text.items():
            if len(str(value)) > _LONGEST_TEXT:
                yield f"{name}: {place}.{language} has more than {_LONGEST_TEXT} characters; cut."


@blocks
def nodes_are_described(package: Package) -> Iterator[str]:
    """People and agents read what a node is for."""
    for name, node in package.nodes.items():
        for key in ("human", "llm"):
            if not dig(node, f"description.{key}"):
                yield f"{name} has no description.{key}; describe the node."


@blocks
def outputs_are_declared(package: Package) -> Iterator[str]:
    """Later nodes can refer only to what output_schema names; this project's own rule."""
    for name, node in package.nodes.items():
        if not dig(node, "output_schema.properties"):
            yield f"{name} has no output_schema.properties; declare what the node gives."


@blocks
def parameters_are_complete(package: Package) -> Iterator[str]:
    """The keys that the daemon's schema requires are there."""
    for name, parameter in _parameters(package):
        missing = [key for key in _PARAMETER_KEYS if not parameter.get(key)]
        if missing:
            yield f"{name}: parameter {parameter.get('name')!r} lacks {', '.join(missing)}."


@blocks
def types_are_known(package: Package) -> Iterator[str]:
    """Types and forms of parameters, credentials and settings are the daemon's."""
    for name, parameter in _parameters(package):
        for key, known in (("type", _PARAMETER_TYPES), ("form", _FORMS)):
            if parameter.get(key) and parameter[key] not in known:
                yield (
                    f"{name}: parameter {parameter.get('name')!r} has the {key}"
                    f" {parameter[key]!r}; known are {', '.join(sorted(known))}."
                )
    for name, settings in _settings(package):
        for setting, declared in settings.items():
            if declared.get("type") not in _SETTING_TYPES:
                yield (
                    f"{name}: {setting} has the type {declared.get('type')!r}; known are"
                    f" {', '.join(sorted(_SETTING_TYPES))}."
                )


@blocks
def scopes_are_on_selectors(package: Package) -> Iterator[str]:
    """No other type may have a scope."""
    for name, declared in _inputs(package):
        if declared.get("scope") and declared.get("type") not in _SCOPED:
            yield (
                f"{name}: {declared.get('name')!r} has a scope, which the type"
                f" {declared.get('type')!r} must not have; take it out."
            )


@blocks
def options_are_short_texts(package: Package) -> Iterator[str]:
    """An unquoted yes or no is a boolean, which installs nowhere."""
    for name, declared in _inputs(package):
        for option in declared.get("options") or ():
            value = option.get("value")
            if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_OPTION:
                yield (
                    f"{name}: {declared.get('name')!r} has the option {value!r}; write a text of"
                    f" {_LONGEST_OPTION} characters at most, in quotes."
                )


@blocks
def settings_are_few(package: Package) -> Iterator[str]:
    """The daemon takes no more."""
    for name, settings in _settings(package):
        if len(settings) > _MAX_SETTINGS:
            yield f"{name} has {len(settings)} fields; {_MAX_SETTINGS} are allowed."


@blocks
def endpoints_have_path_and_method(package: Package) -> Iterator[str]:
    """Each endpoint answers one method on one path, and no two the same."""
    seen: dict[tuple[str, str], str] = {}
    for name, endpoint in package.endpoints.items():
        path, method = str(endpoint.get("path") or ""), str(endpoint.get("method"))
        if not path.startswith("/"):
            yield f"{name}: path {path!r} must begin with a slash."
        if method not in _METHODS:
            yield f"{name}: method {method!r} is none of {', '.join(sorted(_METHODS))}; take one."
        if (path, method) in seen:
            yield f"{name} answers {method} {path} as {seen[path, method]} does; leave one out."
        seen[path, method] = name


def _references(package: Package) -> Iterator[tuple[str, str]]:
    """What a declaration names: the file that names it, and the name."""
    manifest = package.manifest
    for kind in sorted(_KINDS):
        for name in dig(manifest, f"plugins.{kind}") or ():
            yield "manifest.yaml", str(name)
    for owner, icon in named_icons(package):
        yield owner, f"_assets/{icon}"
    for name, provider in package.providers.items():
        yield from ((name, str(node)) for node in provider.get("tools") or ())
    for name, group in package.groups.items():
        yield from ((name, str(endpoint)) for endpoint in group.get("endpoints") or ())
    for name, declared in {**package.providers, **package.nodes, **package.endpoints}.items():
        yield name, str(dig(declared, "extra.python.source") or "no source under extra.python")


def _texts(package: Package) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every text for people: its file, where it stands there, and its languages."""
    for name, declaration in declaration_files(package).items():
        for place, text in _texts_in(declaration, ""):
            yield name, place, text


def _texts_in(value: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            named = item.get("name", index) if isinstance(item, dict) else index
            yield from _texts_in(item, f"{place}[{named}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = f"{place}.{key}" if place else key
            # A node's description holds two, for people and for models; others are texts.
            is_text = key in _TEXT_KEYS or (key == "description" and "human" not in (item or ()))
            if is_text:
                yield inner, item if isinstance(item, dict) else {"en_US": item}
            elif key != "output_schema":  # it is read by machines, in one language
                yield from _texts_in(item, inner)


def _parameters(package: Package) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, node in package.nodes.items():
        for parameter in node.get("parameters") or ():
            yield name, parameter


def _settings(package: Package) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Each form that a user fills in: the file, and its fields by name."""
    for name, provider in package.providers.items():
        yield name, provider.get("credentials_for_provider") or {}
    for name, group in package.groups.items():
        yield name, {str(field.get("name")): field for field in group.get("settings") or ()}


def _inputs(package: Package) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from _parameters(package)
    for name, settings in _settings(package):
        for field, declared in settings.items():
            yield name, {"name": field, **declared}
