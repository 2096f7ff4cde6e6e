"""All rules, by subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devtools.preflight import (
    capabilities,
    code,
    contents,
    declarations,
    dependencies,
    hosts,
    icons,
    manifest,
    privacy,
    readme,
    secrets,
    versions,
    wording,
)
from devtools.preflight.rule import Rule

if TYPE_CHECKING:
    from types import ModuleType

    from devtools.preflight.opened import Package
    from devtools.preflight.rule import Finding

__all__ = ["GROUPS", "findings"]

_SUBJECTS: dict[str, ModuleType] = {
    "Manifest": manifest,
    "Declarations": declarations,
    "Icons": icons,
    "Versions": versions,
    "README": readme,
    "Privacy": privacy,
    "Contents": contents,
    "Secrets": secrets,
    "Dependencies": dependencies,
    "Python sources": code,
    "Capabilities": capabilities,
    "Hosts": hosts,
    "Wording": wording,
}

GROUPS: dict[str, list[Rule]] = {
    subject: [member for member in vars(module).values() if isinstance(member, Rule)]
    for subject, module in _SUBJECTS.items()
}
"""The rules of each subject, in the order in which they stand in its module."""


def findings(package: Package) -> dict[str, list[Finding]]:
    """Apply every rule; returns what is wrong by subject, with an empty list where nothing is."""
    return {
        subject: [finding for rule in rules for finding in rule.findings(package)]
        for subject, rules in GROUPS.items()
    }
