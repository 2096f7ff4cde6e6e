"""The semaphore: first come, first served, and no slot is ever lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holysheep.fair import FairSemaphore
from tests.fakes import START_S, FakeClock, Killed, VirtualTime

SEEDS = range(8)


def test_as_many_slots_as_the_size_are_given_without_waiting() -> None:
    clock = FakeClock()
    slots = FairSemaphore(3, clock)
    assert [slots.acquire(START_S + 5) for _ in range(4)] == [True, True, True, False]
    assert clock.monotonic() == START_S + 5
    assert slots.held == 3


def test_a_deadline_in_the_past_still_gets_a_free_slot() -> None:
    assert FairSemaphore(1, FakeClock()).acquire(START_S - 1)


def test_waiting_callers_are_served_in_the_order_of_their_arrival() -> None:
    time = VirtualTime()
    slots = FairSemaphore(1, time)
    served: list[int] = []

    def caller(number: int) -> None:
        assert slots.acquire(START_S + 1000)
        served.append(number)
        time.sleep(1.0)
        slots.release()

    for number in range(50):
        time.spawn(caller, number, after_s=number * 0.01)
    assert time.run() == [None] * 50
    assert served == list(range(50))
    assert time.monotonic() == pytest.approx(START_S + 50)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_does_not_overtake_when_a_slot_comes_free(seed: int) -> None:
    time = VirtualTime(seed)
    slots = FairSemaphore(1, time)
    order: list[str] = []

    def caller(name: str) -> None:
        slots.acquire(START_S + 100)
        order.append(name)
        time.sleep(5.0)
        slots.release()

    time.spawn(caller, "holder", after_s=1.0)
    time.spawn(caller, "waiting", after_s=2.0)
    time.spawn(caller, "newcomer", after_s=6.0)
    time.run()
    assert order == ["holder", "waiting", "newcomer"]


def test_a_caller_whose_deadline_passes_leaves_its_place_to_the_next() -> None:
    time = VirtualTime()
    slots = FairSemaphore(1, time)
    assert slots.acquire(START_S)
    time.spawn(slots.acquire, START_S + 3)
    time.spawn(slots.acquire, START_S + 10)
    time.spawn(slots.release, after_s=5.0)
    assert time.run() == [False, True, None]
    assert slots.held == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slot_that_is_handed_over_at_the_deadline_is_used_or_passed_on(seed: int) -> None:
    time = VirtualTime(seed)
    slots = FairSemaphore(1, time)
    slots.acquire(START_S)
    time.spawn(slots.acquire, START_S + 5)
    time.spawn(slots.acquire, START_S + 5)
    time.spawn(slots.release, after_s=5.0)
    first, second, _ = time.run()
    assert slots.held == first + second <= 1
    assert slots.acquire(time.monotonic()) == (not first and not second)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at_s", [1.0, 5.0], ids=["waiting", "slot handed over"])
def test_a_caller_that_is_killed_leaves_no_slot_behind(at_s: float, seed: int) -> None:
    time = VirtualTime(seed)
    slots = FairSemaphore(1, time)
    slots.acquire(START_S)
    victim = time.spawn(slots.acquire, START_S + 100)
    time.spawn(time.throw, victim, Killed(), after_s=at_s)
    time.spawn(slots.release, after_s=5.0)
    time.run()
    assert slots.held == (victim.outcome is True)


def test_a_larger_size_serves_waiting_callers_at_once() -> None:
    time = VirtualTime()
    slots = FairSemaphore(1, time)
    slots.acquire(START_S)
    waiting = [time.spawn(slots.acquire, START_S + 100) for _ in range(4)]
    time.spawn(slots.resize, 4, after_s=2.0)
    assert sorted([*time.run()[:4]]) == [False, True, True, True]
    assert [task.ended_s for task in waiting[:3]] == [START_S + 2] * 3


def test_a_smaller_size_takes_nothing_from_those_who_hold_slots() -> None:
    clock = FakeClock()
    slots = FairSemaphore(3, clock)
    for _ in range(3):
        slots.acquire(START_S)
    slots.resize(1)
    assert slots.held == 3
    slots.release()
    slots.release()
    assert not slots.acquire(START_S)
    slots.release()
    assert slots.acquire(START_S)


@settings(max_examples=40)
@given(
    size=st.integers(1, 4),
    holds=st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 6)), min_size=1, max_size=12
    ),
    seed=st.integers(0, 1000),
)
def test_never_more_holders_than_slots_and_all_come_back(
    size: int, holds: list[tuple[float, float, float]], seed: int
) -> None:
    time = VirtualTime(seed)
    slots = FairSemaphore(size, time)
    inside = [0]

    def caller(hold_s: float, patience_s: float) -> None:
        if slots.acquire(time.monotonic() + patience_s):
            inside[0] += 1
            assert inside[0] <= size
            time.sleep(hold_s)
            inside[0] -= 1
            slots.release()

    for arrives_s, hold_s, patience_s in holds:
        time.spawn(caller, hold_s, patience_s, after_s=arrives_s)
    assert time.run() == [None] * len(holds)
    assert slots.held == 0
    assert all(slots.acquire(time.monotonic()) for _ in range(size))
