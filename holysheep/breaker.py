"""Circuit breaker: stop asking a model that is down, and find out cheaply when it is back.

::

    closed --5 failures in a row--> open --30 s--> half_open --success--> closed
                                      ^                          |
                                      +---------failure----------+

A failure is what ``HolySheepError.is_outage`` says: no connection, a time-out, a 5xx, an unreadable
answer. Anything else that upstream answers, a 4xx or a 429 too, shows that it is alive. While
half open exactly one call goes through as the probe, however many arrive at once, and the breaker
closes when its answer begins. A call that ends without a verdict (it was refused by a limit, or its
caller left) frees the probe's place.

Reports of calls that were let through before the state last changed are ignored: fifty calls that
fail together open the breaker once, and a late success does not close it.
"""

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from cachetools import LRUCache

from holysheep import config
from holysheep.errors import (
    CircuitOpen,
    HolySheepError,
    LimitBeyondDeadline,
    RefusedLocally,
    TimedOut,
)
from holysheep.ports import Clock
from holysheep.types import Call, Event, Handler
from holysheep.wording import span

State = Literal["closed", "open", "half_open"]
Verdict = Literal["success", "failure", "none"]


class Breaker(Protocol):
    """The breaker of one base URL and model."""

    def admit(self) -> int:
        """Let a call through, and return the epoch to report with.

        Raises ``CircuitOpen`` with the seconds that are left.
        """
        ...

    def recheck(self, epoch: int) -> None:
        """Raise ``CircuitOpen`` if the breaker has opened since a call was admitted."""
        ...

    def answering(self, epoch: int) -> None:
        """Tell that an answer begins to arrive: all that a probe has to find out."""
        ...

    def report(self, epoch: int, verdict: Verdict) -> None:
        """Tell how a call that was admitted in ``epoch`` has ended."""
        ...


class Breakers(Protocol):
    """The breakers by base URL and model."""

    def get(self, base_url: str, model: str) -> Breaker:
        """The one breaker of that base URL and model."""
        ...

    def states(self, base_url: str) -> dict[str, State]:
        """The state of each model's breaker at a base URL, as far as it is known."""
        ...


class CircuitBreaker:
    """A breaker in its process's memory. Safe for concurrent use."""

    def __init__(
        self,
        *,
        clock: Clock,
        failures: int = config.BREAKER_FAILURES,
        open_s: float = config.BREAKER_OPEN_S,
    ) -> None:
        self._clock = clock
        self._threshold = failures
        self._open_s = open_s
        self._lock = clock.lock()
        self._state: State = "closed"
        self._failures = 0
        self._opened_at_s = 0.0
        self._epoch = 0
        self._probing = False

    @property
    def state(self) -> State:
        """The state now; an open breaker whose time is over counts as half open."""
        with self._lock:
            if self._state == "open" and self._left() <= 0:
                return "half_open"
            return self._state

    def admit(self) -> int:
        """Let a call through, and return the epoch to report with.

        Raises ``CircuitOpen`` with the seconds that are left.
        """
        with self._lock:
            if self._state == "open" and self._left() <= 0:
                self._enter("half_open")
            if self._state == "closed":
                return self._epoch
            if self._state == "half_open" and not self._probing:
                self._probing = True
                return self._epoch
            left = max(0.0, self._left())
        raise circuit_open(self._threshold, left)

    def recheck(self, epoch: int) -> None:
        """Raise ``CircuitOpen`` if the breaker has opened since a call was admitted."""
        with self._lock:
            if epoch == self._epoch or self._state == "closed":
                return
            left = max(0.0, self._left())
        raise circuit_open(self._threshold, left)

    def answering(self, epoch: int) -> None:
        """Tell that an answer begins to arrive: all that a probe has to find out.

        Calls need not wait for the end of its stream. Of other calls only the end counts, or a
        model that breaks off every answer would never be shut.
        """
        with self._lock:
            if epoch == self._epoch and self._state == "half_open":
                self._enter("closed")

    def report(self, epoch: int, verdict: Verdict) -> None:
        """Tell how a call that was admitted in ``epoch`` has ended."""
        with self._lock:
            if epoch != self._epoch:
                return
            if self._state == "half_open":
                self._probing = False
                if verdict == "failure":
                    self._open()
                elif verdict == "success":
                    self._enter("closed")
            elif verdict == "success":
                self._failures = 0
            elif verdict == "failure":
                self._failures += 1
                if self._failures >= self._threshold:
                    self._open()

    def _left(self) -> float:
        return self._opened_at_s + self._open_s - self._clock.monotonic()

    def _open(self) -> None:
        self._opened_at_s = self._clock.monotonic()
        self._enter("open")

    def _enter(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._failures = 0
        self._probing = False


def circuit_open(failures: int, left_s: float) -> CircuitOpen:
    """The refusal of a breaker that is tried again in ``left_s`` seconds; 0 = it is being tried."""
    when = f"it is tried again in {span(left_s)}" if left_s else "a first call is trying it now"
    return CircuitOpen(
        f"The gateway failed {failures} times in a row for this model, so it is not called for a"
        f" while; {when}.",
        retry_after_s=left_s,
    )


class OwnBreakers:
    """The breakers of one process, by base URL and model, made on demand.

    Bounded, because model ids may come from a variable: the one that was unused for longest goes.
    """

    def __init__(self, clock: Clock, limit: int = config.MAX_BREAKERS) -> None:
        self._clock = clock
        self._lock = clock.lock()
        self._breakers: LRUCache[tuple[str, str], CircuitBreaker] = LRUCache(limit)

    def get(self, base_url: str, model: str) -> CircuitBreaker:
        """The one breaker of that base URL and model."""
        key = (base_url, model)
        with self._lock:
            breaker = self._breakers.get(key)
            if breaker is None:
                breaker = self._breakers[key] = CircuitBreaker(clock=self._clock)
            return breaker

    def states(self, base_url: str) -> dict[str, State]:
        """The state of each model's breaker at a base URL."""
        with self._lock:
            known = list(self._breakers.items())
        return {model: breaker.state for (url, model), breaker in known if url == base_url}


class BreakerLayer:
    """Asks the model's breaker before the request goes on, and tells it how the request ended."""

    def __init__(self, breaker_of: Callable[[str], Breaker]) -> None:
        self._breaker_of = breaker_of

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on if the breaker lets it, and report the outcome."""
        breaker = self._breaker_of(call.request.model)
        epoch = call.trace.breaker_epoch = breaker.admit()
        verdict: Verdict = "none"
        try:
            for event in proceed(call):
                if verdict == "none":
                    # Once it answers at all it is alive; a stream that breaks later still fails it.
                    verdict = "success"
                    breaker.answering(epoch)
                yield event
        except (RefusedLocally, LimitBeyondDeadline):
            # Nothing was sent: the limiter above the wire had no room.
            verdict = "none"
            raise
        except HolySheepError as error:
            verdict = "failure" if error.is_outage else "success"
            if isinstance(error, TimedOut) and error.waited_s < config.BREAKER_PATIENCE_S:
                # A caller who gives a model no time says nothing about it to those who do.
                verdict = "none"
            raise
        finally:
            breaker.report(epoch, verdict)


class BreakerRecheck:
    """Stops a call that waited for its turn while the breaker opened."""

    def __init__(self, breaker_of: Callable[[str], Breaker]) -> None:
        self._breaker_of = breaker_of

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on, unless the model has failed in the meantime."""
        self._breaker_of(call.request.model).recheck(call.trace.breaker_epoch)
        return proceed(call)
