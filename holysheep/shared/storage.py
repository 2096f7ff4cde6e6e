"""The storage of a ledger in Redis, for those who have no host with a storage of its own."""

from typing import Any

from holysheep import config
from holysheep.shared.link import Away, Link
from holysheep.shared.scripts import root_of
from holysheep.store import StoreError


class SharedStore:
    """What the processes of one credential have counted. Every method raises ``StoreError``."""

    def __init__(self, link: Link, fingerprint: str) -> None:
        self._link = link
        self._root = root_of(fingerprint)

    def read(self, key: str) -> bytes | None:
        """The value of ``key``; ``None`` = there is none."""
        value: bytes | None = self._do(key, "GET")
        return value

    def has(self, key: str) -> bool:
        """Whether ``key`` has a value."""
        return bool(self._do(key, "EXISTS"))

    def write(self, key: str, value: bytes) -> None:
        """Set the value of ``key``."""
        self._do(key, "SET", value, "EX", config.REDIS_LEDGER_S)

    def delete(self, key: str) -> None:
        """Remove ``key``, if it is there."""
        self._do(key, "DEL")

    def _do(self, key: str, command: str, *args: Any) -> Any:
        try:
            return self._link.run("keyvalue", [f"{self._root}:{key}"], [command, *args])
        except Away as error:
            raise StoreError(str(error)) from error
