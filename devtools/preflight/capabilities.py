"""What the code reaches for, as the marketplace's scan sees it, and why.

A signal is no fault: it has to be explained in the submission, under "Security and privacy notes".
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from devtools.preflight.rule import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devtools.preflight.opened import Package

__all__ = ["REASONS", "signals"]

# Built-in functions are meant, not methods of the same name.
_SIGNALS = {
    "command execution": re.compile(r"\bsubprocess\.\w+\(|\bos\.(system|popen|spawn|exec)\w*\("),
    "code execution": re.compile(
        r"(?<![\w.])(eval|exec|compile|__import__)\s*\(|\bimport_module\s*\(|\b(pickle|marshal)\.load"
    ),
    "SQL or database access": re.compile(
        r"(?i:\bSELECT\b.{0,200}\bFROM\b|\bINSERT\s+INTO\b|\bDELETE\s+FROM\b|\bDROP\s+TABLE\b)"
        r"|(?i:\bUPDATE\s+\S+\s+SET\b|\b(CREATE|ALTER)\s+TABLE\b)"
        r"|\b(sqlite3|psycopg2?|pymysql|sqlalchemy)\b|\.execute(many)?\s*\("
    ),
    "SSH or SFTP": re.compile(r"\b(paramiko|asyncssh|pysftp)\b|\bSSHClient\s*\("),
    "filesystem operations": re.compile(
        r"(?<![\w.])open\s*\(|\bshutil\.(copy|move|rmtree)|\bglob\.glob\s*\("
        r"|\bos\.(remove|unlink|rename|replace|makedirs|listdir|walk)\s*\("
    ),
    "arbitrary network requests": re.compile(
        r"\b(requests|httpx)\.(get|post|put|patch|delete|head|options|request|stream)\s*\("
        r"|\baiohttp\.ClientSession\s*\(|\burlopen\s*\("
    ),
    "browser automation": re.compile(r"\b(playwright|selenium|pyppeteer|webdriver)\b"),
}

REASONS = {
    "SQL or database access": (
        "a Redis pipeline's execute(), on the Redis that the user names; there is no SQL"
    ),
}
"""Why the code gives each signal that it gives, for the submission."""


@blocks
def signals_are_explained(package: Package) -> Iterator[str]:
    """A reviewer gets the reason with the signal; a new one needs a reason, or is not needed."""
    for kind, places in signals(package).items():
        if kind not in REASONS:
            yield f"{places[0]} reads like {kind}; do without it, or write why into REASONS."


def signals(package: Package) -> dict[str, list[str]]:
    """Return the places of each kind of signal, as FILE:LINE; kinds without any are left out."""
    found: dict[str, list[str]] = {}
    for name, text in package.texts(".py", ".js", ".ts"):
        for kind, number in _signals_in(text):
            found.setdefault(kind, []).append(f"{name}:{number}")
    return found


@lru_cache(maxsize=512)
def _signals_in(text: str) -> list[tuple[str, int]]:
    """The kinds of signals in a source, with their lines."""
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if not line.strip().startswith("#")
    ]
    return [
        (kind, number)
        for kind, pattern in _SIGNALS.items()
        for number, line in lines
        if pattern.search(line)
    ]
