"""A key-value storage such as a host offers it to a plugin, and how values lie in it.

The storage has no list of its keys, no expiry and no way to change a value only if it is still the
same; it may be slow, full, or away. A value may come back as it was some minutes ago.
"""

import json
import zlib
from typing import Any, Protocol

from holysheep.types import JsonObject

MAX_VALUE_BYTES = 2_000_000
"""What the host takes: hexadecimal, in one line of 5 MB at most."""
_MAX_UNPACKED_BYTES = 64 * 1024 * 1024
_COMPRESSED_FROM_BYTES = 2000
_ENCODER = json.JSONEncoder(separators=(",", ":"))


class StoreError(Exception):
    """The storage did not do what was asked. The message is for a log."""


class NotOpen(StoreError):
    """Nobody has the storage open now. It is not the storage that failed."""


class Store(Protocol):
    """One workspace's storage. Every method raises ``StoreError``."""

    def read(self, key: str) -> bytes | None:
        """The value of ``key``; ``None`` = there is none."""
        ...

    def has(self, key: str) -> bool:
        """Whether ``key`` has a value."""
        ...

    def write(self, key: str, value: bytes) -> None:
        """Set the value of ``key``."""
        ...

    def delete(self, key: str) -> None:
        """Remove ``key``, if it is there."""
        ...


def pack(value: JsonObject) -> bytes:
    """A JSON object as bytes to be stored. Raises ``StoreError`` if it is too large."""
    packed = _ENCODER.encode(value).encode()
    # To compress a little takes as long as to compress a lot: the memory for it is cleared first.
    if len(packed) > _COMPRESSED_FROM_BYTES:
        packed = zlib.compress(packed)
    if len(packed) > MAX_VALUE_BYTES:
        raise StoreError(f"a value of {len(packed):,} bytes is too large")
    return packed


def unpack(packed: bytes) -> JsonObject:
    """What ``pack`` was given. Raises ``ValueError`` for anything else."""
    try:
        value: Any = json.loads(packed if packed.startswith(b"{") else _decompressed(packed))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def _decompressed(packed: bytes) -> bytes:
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(packed, _MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise ValueError(f"it is not compressed ({error})") from None
    if not reader.eof:
        raise ValueError("it is cut off, or too large")
    return text
