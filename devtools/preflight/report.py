"""What a preflight found, as text for a person."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devtools.preflight.catalogue import GROUPS
from devtools.preflight.rule import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.start import Start

__all__ = ["Report", "package_lines"]

_COUNTED = {
    Severity.BLOCKS: "blocking",
    Severity.WARNS: "warning",
    Severity.OWNER: "left to the owner",
}

_HEADINGS = {
    Severity.BLOCKS: "Stops a submission, an installation or the start",
    Severity.WARNS: "Warns a reviewer",
    Severity.OWNER: "Left to the owner",
}


@dataclass
class Report:
    """Everything that one run found."""

    groups: dict[str, list[Finding]]
    starts: list[Start] = field(default_factory=list)
    """Empty if the package was not started."""
    packager: list[Finding] | None = None
    """What Dify's command line said; None if there is none."""
    notes: list[str] = field(default_factory=list)

    def findings(self, *severities: Severity) -> list[Finding]:
        """Return what was found of these severities, in order."""
        started = [Finding(Severity.BLOCKS, one.error) for one in self.starts if one.error]
        every = [one for group in self.groups.values() for one in group]
        every += [*started, *(self.packager or [])]
        return [finding for finding in every if finding.severity in severities]

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report, without the package's own."""
        for subject, found in self.groups.items():
            yield f"  {subject:<15}{len(GROUPS[subject]):>3} rules  {_outcome(found)}"
        yield from self._starts()
        packager = "not tried: dify is not on PATH"
        if self.packager is not None:
            packager = _outcome(self.packager)
        yield f"  {'Packager':<15}           {packager}"
        for severity, heading in _HEADINGS.items():
            if found := self.findings(severity):
                yield f"\n{heading}:"
                yield from (f"  - {finding.sentence}" for finding in found)
        if self.notes:
            yield "\nFor 'Security and privacy notes' of the submission:"
            yield from (f"  - {note}" for note in self.notes)

    def _starts(self) -> Iterator[str]:
        if not self.starts:
            yield f"  {'Start':<15}           not tried"
        for one in self.starts:
            went = f"answers after {one.start_s:.1f} s (installed in {one.install_s:.0f} s)"
            yield f"  {'Start':<15}           {one.source}: {'fails' if one.error else went}"


def package_lines(name: str, content: bytes, count: int) -> Iterator[str]:
    """Yield size and checksum of a package."""
    yield f"{name}: {len(content):,} bytes, {count} files"
    yield f"sha256 {hashlib.sha256(content).hexdigest()}"


def _outcome(found: list[Finding]) -> str:
    counts = {
        said: sum(one.severity is severity for one in found) for severity, said in _COUNTED.items()
    }
    said = [f"{count} {one}" for one, count in counts.items() if count]
    return ", ".join(said) or "ok"
