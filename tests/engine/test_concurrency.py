"""The layer that holds a slot for as long as a call is under way."""

import pytest

from holysheep.concurrency import ConcurrencyLayer
from holysheep.errors import LimiterTimeout, ServerError
from holysheep.fair import FairSemaphore
from holysheep.types import Call, Event
from tests.fakes import (
    START_S,
    FakeClock,
    Killed,
    ScriptedHandler,
    VirtualTime,
    a_call,
    answered,
    kinds,
)


def test_at_most_so_many_calls_are_in_flight() -> None:
    time = VirtualTime(seed=5)
    slots = FairSemaphore(7, time)
    layer = ConcurrencyLayer(slots, time)
    below = ScriptedHandler(time, answered("a b c", pause_s=0.5))

    def caller() -> list[Event]:
        return list(layer(a_call(time), below))

    for _ in range(50):
        time.spawn(caller)
    assert kinds(time.run()) == {"list": 50}
    assert below.max_in_flight == 7
    assert slots.held == 0


def test_a_caller_that_gets_no_slot_in_time_is_told_which_limit_it_was() -> None:
    clock = FakeClock()
    slots = FairSemaphore(2, clock)
    slots.acquire(START_S)
    slots.acquire(START_S)
    below = ScriptedHandler(clock)
    call = a_call(clock, timeout_s=4.0)
    with pytest.raises(LimiterTimeout, match=r"2 concurrent requests.*max_concurrency"):
        list(ConcurrencyLayer(slots, clock)(call, below))
    assert clock.monotonic() == START_S + 4
    assert not below.calls
    assert call.trace.queue_s == 4.0


def test_the_wait_for_a_slot_is_added_to_the_queue_time() -> None:
    time = VirtualTime()
    layer = ConcurrencyLayer(FairSemaphore(1, time), time)
    below = ScriptedHandler(time, answered("a", pause_s=1.0))
    calls: list[Call] = [a_call(time) for _ in range(3)]
    for call in calls:
        time.spawn(lambda call: list(layer(call, below)), call)
    time.run()
    assert [call.trace.queue_s for call in calls] == [0.0, 2.0, 4.0]


def test_a_failure_gives_the_slot_back() -> None:
    clock = FakeClock()
    slots = FairSemaphore(1, clock)
    below = ScriptedHandler(clock, ServerError("down"))
    with pytest.raises(ServerError):
        list(ConcurrencyLayer(slots, clock)(a_call(clock), below))
    assert slots.held == 0


def test_an_answer_that_is_abandoned_gives_the_slot_back() -> None:
    clock = FakeClock()
    slots = FairSemaphore(1, clock)
    below = ScriptedHandler(clock, answered("a b c"))
    events = ConcurrencyLayer(slots, clock)(a_call(clock), below)
    next(events)
    assert slots.held == 1
    events.close()  # type: ignore[attr-defined]
    assert slots.held == 0
    assert below.outcomes == ["abandoned"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_s", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_a_caller_that_is_killed_at_any_time_gives_the_slot_back(at_s: float, seed: int) -> None:
    time = VirtualTime(seed)
    slots = FairSemaphore(1, time)
    layer = ConcurrencyLayer(slots, time)
    below = ScriptedHandler(time, answered("a", pause_s=1.0))

    def caller() -> list[Event]:
        return list(layer(a_call(time), below))

    time.spawn(caller)
    victim = time.spawn(caller)
    time.spawn(caller)
    time.spawn(time.throw, victim, Killed(), after_s=at_s)
    time.run()
    assert slots.held == 0
    assert len(below.calls) >= 2
