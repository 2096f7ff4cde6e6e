"""A storage that answers while an invocation is open, by way of whichever one is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from holysheep.ports import Clock, Condition
from holysheep.store import NotOpen, Store


@dataclass(frozen=True, slots=True)
class Relay:
    """The storage of the newest of ``opened``, which others change; ``changed`` guards it.

    ``NotOpen`` where there is none for ``patience_s`` seconds.
    """

    changed: Condition
    opened: list[Store]
    clock: Clock
    patience_s: float = 0.0
    used: list[Store] = field(default_factory=list)

    def read(self, key: str) -> bytes | None:
        """The value of ``key``; ``None`` = there is none."""
        with self._any() as store:
            return store.read(key)

    def has(self, key: str) -> bool:
        """Whether ``key`` has a value."""
        with self._any() as store:
            return store.has(key)

    def write(self, key: str, value: bytes) -> None:
        """Set the value of ``key``."""
        with self._any() as store:
            store.write(key, value)

    def delete(self, key: str) -> None:
        """Remove ``key``, if it is there."""
        with self._any() as store:
            store.delete(key)

    def wait_until_unused(self, store: Store, most_s: float) -> None:
        """Return when nothing is under way on an invocation's storage, so that it may end."""
        until_s = self.clock.monotonic() + most_s
        with self.changed:
            while any(used is store for used in self.used):
                left_s = until_s - self.clock.monotonic()
                if left_s <= 0:
                    return
                self.changed.wait(left_s)

    @contextmanager
    def _any(self) -> Iterator[Store]:
        with self.changed:
            until_s = self.clock.monotonic() + self.patience_s
            while not self.opened:
                left_s = until_s - self.clock.monotonic()
                if left_s <= 0:
                    raise NotOpen("no invocation is open")
                self.changed.wait(left_s)
            store = self.opened[-1]
            self.used.append(store)
        try:
            yield store
        finally:
            with self.changed:
                self.used.remove(store)
                self.changed.notify_all()
