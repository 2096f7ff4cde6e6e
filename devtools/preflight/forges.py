"""The hosts where the marketplace lets a plugin's source be, and how they address a file."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FORGES", "is_repository", "link_to_source", "links_to_repositories"]

# What follows the repository's URL for a file of the default branch. HEAD stands for it where the
# host knows that; the others are given the name that they use themselves.
FORGES: Final = {
    "github.com": "/blob/HEAD/{path}",
    "gitlab.com": "/-/blob/HEAD/{path}",
    "bitbucket.org": "/src/HEAD/{path}",
    "gitee.com": "/blob/HEAD/{path}",
    "codeberg.org": "/src/branch/main/{path}",
    "git.sr.ht": "/tree/HEAD/item/{path}",
}

_HOSTS = "|".join(map(re.escape, FORGES))
_REPOSITORY = re.compile(
    rf"https?://(?:www\.)?(?P<host>{_HOSTS})/[^\s/)>\"]+/[^\s)>\"]+", re.IGNORECASE
)


def is_repository(url: str) -> bool:
    """Tell whether ``url`` is that of a repository on one of the hosts, and nothing else."""
    return _REPOSITORY.fullmatch(url) is not None


def links_to_repositories(text: str) -> list[str]:
    """Return the addresses of repositories in a text."""
    return [found.group() for found in _REPOSITORY.finditer(text)]


def link_to_source(repo: str, path: str) -> str:
    """Return the address of a file, relative to the root, in the default branch of ``repo``."""
    found = _REPOSITORY.fullmatch(repo)
    form = FORGES[found["host"].lower()] if found else FORGES["github.com"]
    return repo.rstrip("/").removesuffix(".git") + form.format(path=path)
