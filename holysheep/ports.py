"""What the engine needs from outside: time, waiting and chance.

Every mechanism that depends on them takes a ``Clock`` or an ``Rng`` as an argument, so that an
hour of rate limiting is tested in a millisecond. Two clocks, never mixed: ``monotonic`` for waits
and latency, ``wall`` for anything that is stored or shown.

This is the one module that may touch ``time`` and ``random``. The functions are looked up when an
object is built, not when this module is imported: the Dify SDK replaces ``time.sleep`` and the
threading primitives with gevent's, and a reference taken too early would stall every call.
"""

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Protocol


class Lock(Protocol):
    """Mutual exclusion, by ``with``."""

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object: ...


class Condition(Lock, Protocol):
    """The part of ``threading.Condition`` that the engine uses."""

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification or ``timeout`` seconds, take the lock."""
        ...

    def notify_all(self) -> None:
        """Wake all that wait; the caller holds the lock."""
        ...


class Signal:
    """Tells one who waits to look again. What comes before the wait is not lost."""

    __slots__ = ("_changed", "_is_given")

    def __init__(self, condition: Condition) -> None:
        self._changed = condition
        self._is_given = False

    def give(self) -> None:
        """Wake who waits, or who waits next."""
        with self._changed:
            self._is_given = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait for the signal, ``seconds`` at most."""
        with self._changed:
            if not self._is_given:
                self._changed.wait(seconds)
            self._is_given = False


class Clock(Protocol):
    """Time and waiting. All spans and points are seconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps; only differences mean something."""
        ...

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Suspend the calling thread or greenlet."""
        ...

    def lock(self) -> Lock:
        """A new lock. Held for a few instructions, never while waiting for anything."""
        ...

    def condition(self) -> Condition:
        """A new condition variable whose ``wait`` time-outs run on this clock."""
        ...


def utc_day(clock: Clock) -> date:
    """The current UTC day."""
    return datetime.fromtimestamp(clock.wall(), UTC).date()


def give_way(clock: Clock) -> None:
    """Let others run that wait for the one thread of a process under gevent."""
    # Not 0: with that, gevent runs nobody who waits for a time or for a socket.
    clock.sleep(0.0005)


class Spawn(Protocol):
    """Runs work beside the caller's, such as an executor's ``submit``."""

    def __call__(self, work: Callable[[], None], /) -> object:
        """Begin ``work`` in a thread or greenlet of its own and return at once."""
        ...


class Rng(Protocol):
    """A source of uniform random numbers in [0, 1)."""

    def __call__(self) -> float:
        """The next number."""
        ...


class SystemClock:
    """The process's own clocks: OS threads, or greenlets where gevent has patched the process."""

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.wall: Callable[[], float] = time.time
        self.sleep: Callable[[float], None] = time.sleep

        self.lock: Callable[[], Lock] = threading.Lock
        # On its default, reentrant lock: on a plain one each notify asks for the owner by trying
        # to lock, and under gevent a failed try goes round the event loop with the lock held.
        self.condition: Callable[[], Condition] = threading.Condition


def spawn_thread(work: Callable[[], None]) -> None:
    """A ``Spawn``. The thread ends with the process, whatever it is doing."""
    threading.Thread(target=work, daemon=True).start()


def system_rng() -> Rng:
    """A generator of its own, so that nobody's ``random.seed`` makes two plugins retry in step."""
    return random.SystemRandom().random
