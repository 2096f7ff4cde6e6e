"""Words: nothing that reads as if the plugin moved money."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from devtools.preflight.rule import warns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

_SUFFIXES = (".md", ".yaml", ".yml", ".json", ".toml", ".py", ".js", ".ts", ".j2")

_MONEY = re.compile(
    r"""(?xi) \b(
      charge[ds]? | payments? | payouts? | refund(s|ed)? | checkout | deposits? | withdraw(s|als?)?
    | transactions? | trading
    | (buy|sell|trade) \s+ (stock|crypto|token|asset)s?
    | (send|swap|bridge) \s+ (crypto|token|coin|nft|fund)s? | send \s+ (money|cash)
    | transfer \s+ (crypto|token|coin|nft|fund|asset)s? | transfer \s+ (money|cash)
    | (asset|token|wallet|wire) \s+ transfers? | place \s+ (an?\s+)? orders?
    )\b"""
)


@warns
def nothing_reads_like_a_payment(package: Package) -> Iterator[str]:
    """The marketplace allows no financial activity, and looks for its words, in comments too."""
    for name, text in package.texts(*_SUFFIXES):
        for number, word in _words_in(text):
            yield (
                f"{name}, line {number}, has the word {word!r}, which reads like financial"
                " activity; say cost, spend or usage."
            )


@lru_cache(maxsize=512)
def _words_in(text: str) -> list[tuple[int, str]]:
    return [
        (number, found.group())
        for number, line in enumerate(text.splitlines(), start=1)
        for found in _MONEY.finditer(line)
    ]
