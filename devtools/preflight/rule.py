"""What a rule is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from devtools.preflight.opened import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devtools.preflight.opened import Package

__all__ = ["Finding", "Rule", "Severity", "blocks", "left_to_owner", "warns"]


class Severity(Enum):
    """What follows if a rule is broken."""

    BLOCKS = "blocks"
    """The submission is refused, or the plugin does not install or start."""
    WARNS = "warns"
    """A reviewer is told to look. Here it fails all the same: nothing need be looked at."""
    OWNER = "owner"
    """It waits for what only the plugin's owner knows; a release needs it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; the sentence names the file and says what to do."""

    severity: Severity
    sentence: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A function that yields a sentence for each thing that is wrong in a package."""

    severity: Severity
    check: Callable[[Package], Iterator[str]]

    @property
    def name(self) -> str:
        """The name of the function, which is a statement about a package in order."""
        return self.check.__name__

    def findings(self, package: Package) -> list[Finding]:
        """Return what is wrong; what cannot be read is another rule's finding."""
        try:
            return [Finding(self.severity, sentence) for sentence in self.check(package)]
        except Unreadable:
            return []


def blocks(check: Callable[[Package], Iterator[str]]) -> Rule:
    """Make a rule that stops a submission, an installation or the start."""
    return Rule(Severity.BLOCKS, check)


def warns(check: Callable[[Package], Iterator[str]]) -> Rule:
    """Make a rule whose violation a reviewer would be warned of."""
    return Rule(Severity.WARNS, check)


def left_to_owner(check: Callable[[Package], Iterator[str]]) -> Rule:
    """Make a rule that only the plugin's owner can fulfil."""
    return Rule(Severity.OWNER, check)
