"""A workspace's storage in memory, as processes on one timeline see it: slow, failing, stale."""

from collections.abc import Callable
from dataclasses import dataclass, field

from holysheep.ports import Clock
from holysheep.store import StoreError

Fault = Callable[[str, str], str | None]
"""Given an operation and its key, what is wrong with it, or ``None``."""


@dataclass
class Disk:
    """What is stored, and how it is served. ``latency_s`` is the round trip of an operation."""

    clock: Clock
    latency_s: float = 0.0
    fault: Fault | None = None
    data: dict[str, bytes] = field(default_factory=dict)
    operations: list[tuple[str, str]] = field(default_factory=list)

    def count(self, operation: str) -> int:
        """How many operations of a kind there were."""
        return sum(name == operation for name, _ in self.operations)

    @property
    def size_bytes(self) -> int:
        """What all keys and values take."""
        return sum(len(key) + len(value) for key, value in self.data.items())

    def open(self) -> "DiskStore":
        """The storage as one invocation has it."""
        return DiskStore(self)


class ClosedError(BaseException):
    """The storage of an invocation that has ended was used: on a host that never returns."""


class DiskStore:
    """One invocation's storage, until ``close``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._is_closed = False

    def close(self) -> None:
        self._is_closed = True

    def read(self, key: str) -> bytes | None:
        self._begin("read", key)
        value = self._disk.data.get(key)
        self._end()
        return value

    def has(self, key: str) -> bool:
        self._begin("has", key)
        found = key in self._disk.data
        self._end()
        return found

    def write(self, key: str, value: bytes) -> None:
        self._begin("write", key)
        self._disk.data[key] = value
        self._end()

    def delete(self, key: str) -> None:
        self._begin("delete", key)
        if self._disk.data.pop(key, None) is None:
            raise StoreError("no such key")
        self._end()

    def _begin(self, operation: str, key: str) -> None:
        if self._is_closed:
            raise ClosedError(f"{operation} {key}")
        self._disk.operations.append((operation, key))
        self._disk.clock.sleep(self._disk.latency_s / 2)
        wrong = self._disk.fault(operation, key) if self._disk.fault else None
        if wrong is not None:
            raise StoreError(wrong)

    def _end(self) -> None:
        self._disk.clock.sleep(self._disk.latency_s / 2)
        if self._is_closed:
            raise ClosedError("the invocation ended while the storage was answering")
