"""At most so many requests of a credential in flight; the others wait their turn."""

from collections.abc import Iterator

from holysheep.errors import LimiterTimeout
from holysheep.fair import FairSemaphore
from holysheep.ports import Clock
from holysheep.types import Call, Event, Handler


class ConcurrencyLayer:
    """Holds one of the credential's slots from before the request until its answer has ended."""

    def __init__(self, slots: FairSemaphore, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on when a slot is free."""
        began = self._clock.monotonic()
        try:
            got = self._slots.acquire(call.turn_by_s(began))
        finally:
            call.trace.queue_s += self._clock.monotonic() - began
        if not got:
            raise LimiterTimeout(
                f"All {self._slots.size} concurrent requests of this credential were in use until"
                " the deadline. Raise timeout_s, or max_concurrency in the credential."
            )
        try:
            yield from proceed(call)
        finally:
            self._slots.release()
