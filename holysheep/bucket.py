"""The token bucket: a burst of its size, then a steady rate.

A bucket of ``rate`` tokens refills at ``rate / per_seconds``. Callers may take an estimate and
settle it with what was used in the end, so a bucket may be in debt for a while.

``Client`` has its own for its limits. By itself it limits what a program asks of something else::

    from holysheep import TokenBucket
    from holysheep.ports import SystemClock

    clock = SystemClock()
    bucket = TokenBucket(100, per_seconds=1, clock=clock)
    while not bucket.acquire():
        clock.sleep(bucket.wait_time())
"""

from holysheep.ports import Clock


class TokenBucket:
    """A token bucket that starts full: ``rate`` tokens per ``per_seconds``; its size is ``rate``.

    ``clock`` is ``holysheep.ports.SystemClock()``, or a test's own. Never waits: ``acquire`` says
    at once whether there was room, ``wait_time`` when there will be. Knows no order among those who
    wait. Safe for concurrent use, within one process.

    Raises ``ValueError`` unless both numbers are above 0.
    """

    def __init__(self, rate: float, per_seconds: float = 60.0, *, clock: Clock) -> None:
        if not (rate > 0 and per_seconds > 0):
            raise ValueError("rate and per_seconds must be greater than 0")
        self.rate = rate
        self.per_seconds = per_seconds
        self._clock = clock
        self._lock = clock.lock()
        self._tokens = float(rate)
        self._updated_s = clock.monotonic()

    def acquire(self, amount: float = 1.0) -> bool:
        """Take ``amount`` if it is there, and return ``True``; nothing is taken otherwise.

        More than the bucket holds is given when it is full, and leaves it in debt.
        """
        with self._lock:
            self._refill()
            if self._tokens < self._bounded(amount) - 1e-9:
                return False
            self._tokens -= amount
            return True

    def wait_time(self, amount: float = 1.0) -> float:
        """Seconds until ``amount`` could be taken if nobody else took any; 0 = now."""
        return self.drain_time(self._bounded(amount))

    def drain_time(self, amount: float) -> float:
        """Seconds until ``amount`` in all, however much, could have been taken; 0 = now."""
        with self._lock:
            self._refill()
            missing = amount - self._tokens
            # A remainder of rounding would otherwise be waited for again and again.
            return 0.0 if missing <= 1e-9 else missing * self.per_seconds / self.rate

    def settle(self, amount: float) -> None:
        """Put ``amount`` back, up to the size, or take it where it is negative, even into debt."""
        with self._lock:
            self._refill()
            self._tokens = min(self.rate, self._tokens + amount)

    def resize(self, rate: float) -> None:
        """Change rate and size, which must be above 0; what has been taken stays taken."""
        with self._lock:
            self._refill()
            self._tokens += rate - self.rate
            self.rate = rate

    @property
    def is_full(self) -> bool:
        """Whether the bucket has recovered from all that was taken."""
        with self._lock:
            self._refill()
            return self._tokens >= self.rate

    def _bounded(self, amount: float) -> float:
        """A call larger than the bucket goes when the bucket is full, rather than never."""
        return min(amount, self.rate)

    def _refill(self) -> None:
        now = self._clock.monotonic()
        gained = (now - self._updated_s) * self.rate / self.per_seconds
        self._tokens = min(self.rate, self._tokens + gained)
        self._updated_s = now
