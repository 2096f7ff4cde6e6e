"""What a reviewer will ask about: for "Security and privacy notes" of the submission."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devtools.preflight.capabilities import REASONS, signals
from devtools.preflight.code import named_like_secrets
from devtools.preflight.hosts import named_hosts
from devtools.preflight.opened import dig
from devtools.preflight.secrets import literals_for_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["notes"]

_MOST_PLACES = 3
_ADVISED_WORDS = 500


def notes(package: Package) -> Iterator[str]:
    """Yield what the package does that the marketplace wants disclosed; raises Unreadable."""
    fields = {field for one in package.providers.values() for field in _credentials(one)}
    chosen = sorted(fields & {"base_url", "redis_url"})
    if chosen:
        yield (
            f"Network: the user may choose the destination ({', '.join(chosen)} of the credential):"
            " tick the risk level High."
        )
    hosts = ", ".join(named_hosts(package)) or "none"
    declared = ", ".join(dig(package.manifest, "network.domains") or []) or "none"
    yield f"Network: hosts named in the sources: {hosts}; declared as network.domains: {declared}."
    for permission, meaning in _PERMISSIONS.items():
        if dig(package.manifest, f"resource.permission.{permission}.enabled"):
            yield f"Permission {permission}: {meaning}"
    for kind, places in signals(package).items():
        yield f"Signal {kind!r} at {_some(places)}: {REASONS.get(kind, 'not explained')}."
    if places := literals_for_secrets(package):
        yield (
            f"Texts beside names like secrets at {_some(places)}: names of fields, of settings and"
            " of environment variables."
        )
    if places := named_like_secrets(package):
        yield (
            f"Names like secrets (token, credential) are raised, returned or yielded at"
            f" {_some(places)}: counts of tokens, hashes of credentials, and texts that had secrets"
            " removed."
        )
    words = len(package.text("README.md").split())
    yield f"README.md has {words:,} words; the marketplace's guide advises {_ADVISED_WORDS}."


_PERMISSIONS = {
    "tool": "lets the plugin call other tools of the workspace.",
    "model": "lets the plugin call the workspace's models.",
    "app": "lets the plugin call the workspace's apps.",
    "node": "lets the plugin call Dify's own nodes.",
    "endpoint": "lets the plugin answer HTTP requests; each endpoint has an access token.",
    "storage": "lets the plugin keep usage and spending in Dify's storage, as PRIVACY.md says.",
}


def _credentials(provider: dict[str, object]) -> list[str]:
    declared = provider.get("credentials_for_provider")
    return list(declared) if isinstance(declared, dict) else []


def _some(places: list[str]) -> str:
    more = len(places) - _MOST_PLACES
    return ", ".join(places[:_MOST_PLACES]) + (f" and {more} more places" if more > 0 else "")
