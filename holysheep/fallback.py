"""Ask the next model where one fails for reasons of its own.

Which failures are such is a property of the error (``HolySheepError.falls_back``): retries used
up, an open breaker, a rate limit that cannot be waited out, an unknown model. A refused key or a
malformed request would fail with every model alike.
"""

from collections.abc import Iterator

from holysheep.errors import HolySheepError
from holysheep.ports import Clock
from holysheep.streams import primed
from holysheep.types import Call, Event, Handler


class FallbackLayer:
    """Tries the asked model, then ``Policy.fallback_models``, within the one deadline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on to one model after the other until one answers."""
        asked = call.request.model
        failures: list[tuple[str, HolySheepError]] = []
        for model in dict.fromkeys((asked, *call.policy.fallback_models)):
            attempt = call
            if model != asked:
                call.trace.fallback_from = asked
                attempt = call.asking(call.request.with_model(model))
            try:
                events = primed(proceed(attempt))
            except HolySheepError as error:
                failures.append((model, error))
                if not error.falls_back or self._clock.monotonic() >= call.deadline_s:
                    break
            else:
                yield from events
                return
        raise _all_failed(failures)


def _all_failed(failures: list[tuple[str, HolySheepError]]) -> HolySheepError:
    """The error of the model that was asked for, telling what became of the others."""
    (_, first), *others = failures
    if others:
        tried = ", ".join(f"{model} ({error.error_type})" for model, error in others)
        first.message = f"{first.message} The fallback failed too: {tried}."
    return first
