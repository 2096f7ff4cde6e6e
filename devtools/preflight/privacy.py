"""PRIVACY.md: there, filled in, and about data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from devtools.preflight.rule import blocks, warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

_TEMPLATE = "please fill in the privacy policy"
_DISCLOSURES = re.compile(
    r"collect|personal data|stor(e|age)|ret(ain|ention)|\blogs?\b|shar|sen[dt]"
)


@blocks
def the_policy_is_filled_in(package: Package) -> Iterator[str]:
    """The template's sentence is gone."""
    if _TEMPLATE in package.text("PRIVACY.md").lower():
        yield "PRIVACY.md is the template; write what is sent, where, and what is kept."


@warns
def the_policy_is_about_data(package: Package) -> Iterator[str]:
    """It says what is collected, sent, stored or shared, or that nothing is."""
    if not _DISCLOSURES.search(package.text("PRIVACY.md").lower()):
        yield "PRIVACY.md says nothing of what is sent, stored or shared; write it."
