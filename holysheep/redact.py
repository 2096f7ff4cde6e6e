"""Removes what must not be seen from text that came from outside."""

import re

_MARK = "[redacted]"
# Key-shaped words of common vendors, bearer tokens, and the query and user part of URLs.
_KEY_SHAPES = re.compile(
    r"\b(?:sk|cr|pk|rk|key|xai|gsk)[-_][A-Za-z0-9_\-*.]{6,}|\bAIza[A-Za-z0-9_\-]{10,}",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer|x-api-key:?)\s+\S+", re.IGNORECASE)
_URL_SECRETS = re.compile(r"(https?://)(?:[^\s/@]+@)?([^\s?#\"']+)[?#][^\s\"']*")
_URL_USER = re.compile(r"(https?://)[^\s/@]+@")


def redact(text: str, *secrets: str) -> str:
    """``text`` on one line without ``secrets``, key-shaped words and the private parts of URLs."""
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, _MARK)
    text = _KEY_SHAPES.sub(_MARK, text)
    text = _BEARER.sub(rf"\1 {_MARK}", text)
    text = _URL_SECRETS.sub(r"\1\2", text)
    text = _URL_USER.sub(r"\1", text)
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())
