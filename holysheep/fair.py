"""A counting semaphore that serves its callers in the order in which they came.

``threading.Semaphore`` lets a newcomer overtake those who wait, so under load an early caller can
starve until its deadline. Here a slot that is given back goes to the longest-waiting caller.
"""

from collections import deque

from holysheep.ports import Clock, Condition


class FairSemaphore:
    """At most ``size`` holders at a time, first come, first served.

    ``size`` may be changed at any time; holders above a lowered size keep their slot.
    """

    def __init__(self, size: int, clock: Clock) -> None:
        self.size = size
        self._clock = clock
        self._lock = clock.lock()
        self._held = 0
        self._waiting: deque[_Waiter] = deque()

    @property
    def held(self) -> int:
        """Slots in use."""
        return self._held

    def acquire(self, deadline_s: float) -> bool:
        """Take a slot, waiting until ``deadline_s`` (monotonic) at most; whether it was got."""
        with self._lock:
            if self._held < self.size and not self._waiting:
                self._held += 1
                return True
            waiter = _Waiter(self._clock.condition())
            self._waiting.append(waiter)
        try:
            with waiter.condition:
                while not waiter.served:
                    left = deadline_s - self._clock.monotonic()
                    if left <= 0:
                        break
                    waiter.condition.wait(left)
        except BaseException:
            # Interrupted while waiting: nobody will give back a slot that was handed over.
            if self._leave(waiter):
                self.release()
            raise
        return self._leave(waiter)

    def _leave(self, waiter: "_Waiter") -> bool:
        """End the wait; whether a slot was handed over, at the last moment or before."""
        with self._lock:
            if not waiter.served:
                self._waiting.remove(waiter)
            return waiter.served

    def release(self) -> None:
        """Give a slot back; the longest-waiting caller gets it."""
        with self._lock:
            self._held -= 1
            self._serve()

    def resize(self, size: int) -> None:
        """Change the number of slots."""
        with self._lock:
            self.size = size
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._held < self.size:
            waiter = self._waiting.popleft()
            self._held += 1
            with waiter.condition:
                waiter.served = True
                waiter.condition.notify_all()


class _Waiter:
    __slots__ = ("condition", "served")

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.served = False
