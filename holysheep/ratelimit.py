"""The limiter as layers: wait for a place, settle it, and pause at an upstream 429."""

from collections.abc import Iterator

from holysheep.errors import RateLimited, RefusedLocally
from holysheep.limiter import Limiter, Place
from holysheep.ports import Clock
from holysheep.streams import begun
from holysheep.tokens import estimate_call_tokens
from holysheep.types import Call, Completed, Event, Handler


class RateLimitLayer:
    """Takes a place in the limiter before the request goes on, and settles it afterwards."""

    def __init__(self, limiter: Limiter, clock: Clock) -> None:
        self._limiter = limiter
        self._clock = clock

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on when its turn has come."""
        estimate = estimate_call_tokens(call.request) if self._limiter.limits_tokens else 0
        reservation, events = self._admitted(call, proceed, estimate)
        tokens_used: float | None = None
        try:
            for event in events:
                reservation.accepted()
                if isinstance(event, Completed):
                    tokens_used = event.completion.usage.total_tokens
                yield event
        except RateLimited as error:
            reservation.refused(error.retry_after_s)
            raise
        finally:
            reservation.end(tokens_used)

    def _admitted(
        self, call: Call, proceed: Handler, estimate: float
    ) -> tuple[Place, Iterator[Event]]:
        """Wait for the turn and begin; again, where a pause came while waiting for a slot."""
        trace = call.trace
        while True:
            began = self._clock.monotonic()
            try:
                reservation = self._limiter.reserve(
                    call.request.model,
                    estimate,
                    deadline_s=call.turn_by_s(began),
                    is_fallback=trace.fallback_from is not None,
                )
            finally:
                trace.queue_s += self._clock.monotonic() - began
            try:
                return reservation, begun(proceed(call))
            except _PausedAgain:
                reservation.cancel()
            except RefusedLocally:
                reservation.cancel()
                raise
            except RateLimited as error:
                reservation.refused(error.retry_after_s)
                reservation.end(0)
                raise
            except BaseException:
                reservation.end(None)
                raise


class PauseRecheck:
    """Sends a call back to the queue if a pause began while it waited for a slot."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on, unless upstream has asked to wait in the meantime."""
        is_fallback = call.trace.fallback_from is not None
        if self._limiter.is_paused(call.request.model, is_fallback=is_fallback):
            raise _PausedAgain
        return proceed(call)


class _PausedAgain(Exception):
    """A call that was let through goes back to the queue; nothing was sent."""
