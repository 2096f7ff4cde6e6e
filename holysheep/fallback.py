"""Ask the next model where one fails for reasons of its own.

Which failures are such is a property of the error (``HolySheepError.falls_back``): retries used
up, an open breaker, a rate limit that cannot be waited out, an unknown model, a model that does not
begin to answer within its share of the time. A refused key or a malformed request would fail with
every model alike.
"""

from collections.abc import Iterator
from dataclasses import replace

from holysheep.errors import HolySheepError
from holysheep.faults import with_id
from holysheep.ports import Clock
from holysheep.streams import hang_up, unseen
from holysheep.types import Call, Completed, Event, Handler


class FallbackLayer:
    """Tries the asked model, then ``Policy.fallback_models``, within the one deadline."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, call: Call, proceed: Handler) -> Iterator[Event]:
        """Pass the call on to one model after the other until one answers."""
        asked = call.request.model
        models = tuple(dict.fromkeys((asked, *call.policy.fallback_models)))
        failures: list[tuple[str, HolySheepError]] = []
        for number, model in enumerate(models):
            attempt = self._attempt(call, model, models_left=len(models) - number)
            try:
                events = unseen(attempt, proceed(attempt))
            except HolySheepError as error:
                failures.append((model, error))
                if not error.falls_back or self._clock.monotonic() >= call.ends_s:
                    break
            else:
                yield from events if model == asked else _told(events, asked)
                return
        raise _all_failed(failures)

    def _attempt(self, call: Call, model: str, *, models_left: int) -> Call:
        """The call to one of the models, which must begin to answer within its share of the time.

        Without a share, one that keeps silent would leave nothing for those behind it.
        """
        if models_left > 1:
            now = self._clock.monotonic()
            share_s = (call.ends_s - now) / models_left
            active_s = now - call.trace.started_s - call.trace.queue_s
            call = replace(call, share_s=active_s + share_s)
        if model == call.request.model:
            return call
        call.trace.fallback_from = call.request.model
        return call.asking(call.request.with_model(model))


def _told(events: Iterator[Event], asked: str) -> Iterator[Event]:
    """The events, with the completion saying which model was asked first."""
    try:
        for event in events:
            if isinstance(event, Completed):
                yield Completed(replace(event.completion, fallback_from=asked))
            else:
                yield event
    finally:
        hang_up(events)


def _all_failed(failures: list[tuple[str, HolySheepError]]) -> HolySheepError:
    """The error of the model that was asked for, telling what became of the others."""
    (_, first), *others = failures
    if others:
        tried = ", ".join(f"{model} ({error.error_type})" for model, error in others)
        told = first.message.removesuffix(with_id("", first.request_id))
        first.message = with_id(f"{told} The fallback failed too: {tried}.", first.request_id)
    return first
