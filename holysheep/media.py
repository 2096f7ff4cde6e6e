"""Images for a request: recognised by their content, carried as data URLs.

The host hands a plugin URLs that only it can reach, so the bytes travel with the request.
"""

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from holysheep import config
from holysheep.errors import InputError, SettingsError
from holysheep.inflate import inflated
from holysheep.network import limits
from holysheep.pool import PooledTransport
from holysheep.ports import Clock
from holysheep.redact import redact
from holysheep.wording import shortened


@dataclass(frozen=True, slots=True)
class Image:
    """An image to show the model: a ``data:`` or ``https:`` URL."""

    url: str = field(repr=False)


def image_from_bytes(content: bytes, name: str = "image") -> Image:
    """An image from a file's content. Raises ``InputError`` if it is none, or too large."""
    shown = shortened(redact(name), 60)
    if len(content) > config.MAX_FILE_BYTES:
        raise InputError(f"The file {shown!r} is larger than {_limit()}.")
    mime_type = _mime_type(content)
    if mime_type is None:
        raise InputError(f"The file {shown!r} is no image (PNG, JPEG, GIF or WebP).")
    return Image(f"data:{mime_type};base64,{base64.b64encode(content).decode()}")


def fetch_file(url: str, name: str, *, clock: Clock, deadline_s: float) -> bytes:
    """The content of a file that the host offers. Raises ``InputError`` if it cannot be had."""
    shown = shortened(redact(name), 60)
    try:
        location = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        location = httpx.URL("")
    if location.scheme not in ("http", "https") or not location.host:
        raise InputError(
            f"The file {shown!r} has no usable address. Set FILES_URL in Dify's environment."
        )
    request = httpx.Request(
        "GET",
        location,
        extensions={
            "timeout": limits(
                clock,
                deadline_s,
                connect_s=config.CONNECT_TIMEOUT_S,
                read_s=config.READ_TIMEOUT_S,
                write_s=config.WRITE_TIMEOUT_S,
            )
        },
    )
    # Files come from the host, a few at a time: no pool is kept for it.
    try:
        transport = PooledTransport(url, clock=clock, max_idle=0)
    except SettingsError as error:
        raise InputError(f"The file {shown!r} could not be fetched. {error.message}") from None
    try:
        response = transport.handle_request(request)
        try:
            if response.status_code != 200:
                raise InputError(
                    f"The file {shown!r} could not be fetched from Dify"
                    f" (HTTP {response.status_code})."
                )
            return b"".join(_bounded(response, shown))
        finally:
            response.close()
    except (httpx.TransportError, zlib.error) as error:
        if _is_late(error, clock, deadline_s):
            raise InputError(
                f"The file {shown!r} did not arrive from Dify in time. Raise timeout_s, or use a"
                " smaller file."
            ) from None
        raise InputError(
            f"The file {shown!r} could not be fetched from Dify. The plugin must be able to reach"
            " FILES_URL or INTERNAL_FILES_URL of Dify's environment."
        ) from None


def _is_late(error: Exception, clock: Clock, deadline_s: float) -> bool:
    """Whether the time ran out while somebody was answering, or could still have begun to."""
    # A connection that takes so long is rather kept out by a firewall: its address is wrong.
    unreachable = isinstance(error, httpx.ConnectTimeout) and clock.monotonic() < deadline_s
    return isinstance(error, httpx.TimeoutException) and not unreachable


def _bounded(response: httpx.Response, shown: str) -> Iterator[bytes]:
    total = 0
    for piece in inflated(response.iter_raw(), response.headers.get("content-encoding", "")):
        total += len(piece)
        if total > config.MAX_FILE_BYTES:
            raise InputError(f"The file {shown!r} is larger than {_limit()}.")
        yield piece


def _limit() -> str:
    return f"{config.MAX_FILE_BYTES // (1024 * 1024)} MB"


def _mime_type(content: bytes) -> str | None:
    """The type of an image by its first bytes, whatever its name says."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return None
