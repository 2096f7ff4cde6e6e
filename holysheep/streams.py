"""Helpers for iterators of events."""

from collections.abc import Iterator, Sequence
from typing import Any

from holysheep.types import Call, Delta, Event


def begun(events: Iterator[Event]) -> Iterator[Event]:
    """Pull the first event at once and return an iterator over all of them.

    What fails before the first event fails here; what fails later fails in the iterator.
    """
    return _resumed([next(events)], events)


def unseen(call: Call, events: Iterator[Event]) -> Iterator[Event]:
    """Pull events at once until there is one that somebody sees; return an iterator over all.

    What fails here can still be tried again. Who does not watch sees nothing before the end, and
    who is shown the text alone does not see the reasoning before it.
    """
    held = []
    for event in events:
        held.append(event)
        if call.stream and isinstance(event, Delta) and (event.text or call.shows_reasoning):
            break
    return _resumed(held, events)


def hang_up(events: Iterator[Any]) -> None:
    """End an answer that nobody reads any more, and with it the request to upstream."""
    close = getattr(events, "close", None)
    if close is not None:
        close()


def _resumed(held: Sequence[Event], rest: Iterator[Event]) -> Iterator[Event]:
    try:
        yield from held
        yield from rest
    finally:
        hang_up(rest)
