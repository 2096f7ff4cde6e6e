"""Helpers for iterators of events."""

from collections.abc import Iterator

from holysheep.types import Event


def primed(events: Iterator[Event]) -> Iterator[Event]:
    """Pull the first event at once and return an iterator over all of them.

    What fails before the first event fails here, where it can still be tried again; what fails
    later fails in the iterator, when part of the answer has been passed on.
    """
    return _resumed(next(events), events)


def _resumed(first: Event, rest: Iterator[Event]) -> Iterator[Event]:
    yield first
    yield from rest
