"""A key-value storage such as a host offers it to a plugin, and how values lie in it.

The storage has no list of its keys, no expiry and no way to change a value only if it is still the
same; it may be slow, full, or away. A value may come back as it was some minutes ago.
"""

import json
from typing import Any, Protocol

from holysheep.packing import compressed, decompressed
from holysheep.types import JsonObject

MAX_VALUE_BYTES = 2_000_000
"""What the host takes: hexadecimal, in one line of 5 MB at most."""
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
    packed = compressed(_ENCODER.encode(value).encode(), level=6)
    if len(packed) > MAX_VALUE_BYTES:
        raise StoreError(f"a value of {len(packed):,} bytes is too large")
    return packed


def unpack(packed: bytes) -> JsonObject:
    """What ``pack`` was given. Raises ``ValueError`` for anything else."""
    try:
        value: Any = json.loads(decompressed(packed))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value
