"""The instruments themselves: a test is worth what its clock is worth."""

import pytest

from tests.fakes import (
    START_S,
    DeadlockError,
    FakeClock,
    Killed,
    ScriptedHandler,
    VirtualTime,
    a_call,
    answered,
    text_of,
)


def test_virtual_sleepers_wake_in_the_order_of_their_times() -> None:
    time = VirtualTime()
    woken: list[tuple[float, str]] = []

    def sleeper(name: str, seconds: float) -> None:
        time.sleep(seconds)
        woken.append((time.monotonic() - START_S, name))

    time.spawn(sleeper, "late", 3600.0)
    time.spawn(sleeper, "early", 1.0)
    time.run()
    assert woken == [(1.0, "early"), (3600.0, "late")]


def test_results_and_errors_come_in_the_order_of_spawning() -> None:
    time = VirtualTime(seed=1)
    error = ValueError("no")

    def fail() -> None:
        raise error

    time.spawn(time.sleep, 5.0)
    time.spawn(fail)
    time.spawn(lambda: "yes", after_s=1.0)
    assert time.run() == [None, error, "yes"]


def test_notified_callers_wake_before_their_time_out() -> None:
    time = VirtualTime()
    changed = time.condition()

    def waiter() -> tuple[bool, float]:
        with changed:
            return changed.wait(10.0), time.monotonic() - START_S

    def notifier() -> None:
        with changed:
            changed.notify_all()

    time.spawn(waiter)
    time.spawn(notifier, after_s=4.0)
    time.spawn(waiter, after_s=5.0)
    assert time.run() == [(True, 4.0), None, (False, 15.0)]


def test_a_wait_that_nobody_ends_is_a_deadlock_for_all() -> None:
    time = VirtualTime()
    changed = time.condition()

    def waiter() -> None:
        with changed:
            changed.wait()

    tasks = [time.spawn(waiter) for _ in range(3)]
    with pytest.raises(DeadlockError):
        time.run()
    assert all(isinstance(task.outcome, DeadlockError) for task in tasks)


def test_two_locks_in_opposite_order_deadlock_with_some_seed() -> None:
    def deadlocks(seed: int) -> bool:
        time = VirtualTime(seed)
        one, two = time.lock(), time.lock()

        def take(first: object, second: object) -> None:
            with first, second:  # type: ignore[attr-defined]
                pass

        time.spawn(take, one, two)
        time.spawn(take, two, one)
        try:
            time.run()
        except DeadlockError:
            return True
        return False

    assert {deadlocks(seed) for seed in range(30)} == {True, False}


def test_a_seed_gives_the_same_order_every_time_and_another_seed_another() -> None:
    def order(seed: int) -> list[int]:
        time = VirtualTime(seed)
        lock = time.lock()
        came: list[int] = []

        def caller(number: int) -> None:
            with lock:
                came.append(number)

        for number in range(10):
            time.spawn(caller, number)
        time.run()
        return came

    assert order(7) == order(7)
    assert len({tuple(order(seed)) for seed in range(10)}) > 5


def test_a_virtual_lock_lets_one_in_at_a_time() -> None:
    time = VirtualTime(seed=3)
    lock = time.lock()
    inside: list[int] = []

    def caller(number: int) -> None:
        with lock:
            inside.append(number)
            time.sleep(1.0)
            assert inside == [number]
            inside.clear()

    for number in range(20):
        time.spawn(caller, number)
    assert time.run() == [None] * 20
    assert time.monotonic() == START_S + 20


def test_what_is_thrown_arrives_where_the_caller_waits() -> None:
    time = VirtualTime()
    victim = time.spawn(time.sleep, 60.0)
    time.spawn(lambda: time.throw(victim, Killed()), after_s=2.0)
    outcome, _ = time.run()
    assert isinstance(outcome, Killed)
    assert victim.ended_s == START_S + 2


def test_callers_that_never_wait_for_long_are_stopped() -> None:
    time = VirtualTime(max_steps=100)

    def spin() -> None:
        while True:
            time.sleep(0.0)

    time.spawn(spin)
    with pytest.raises(DeadlockError):
        time.run()


def test_a_fake_clock_refuses_waits_that_would_hang() -> None:
    clock = FakeClock()
    lock, changed = clock.lock(), clock.condition()
    with pytest.raises(DeadlockError), changed:
        changed.wait()
    with pytest.raises(DeadlockError), lock, lock:
        pass
    with changed:
        changed.wait(2.5)
    assert clock.monotonic() == START_S + 2.5


def test_the_last_behaviour_of_a_script_is_for_all_further_calls() -> None:
    clock = FakeClock()
    handler = ScriptedHandler(clock, ValueError("first"), answered("a b", pause_s=2.0))
    with pytest.raises(ValueError, match="first"):
        list(handler(a_call(clock)))
    assert [text_of(handler(a_call(clock))) for _ in range(2)] == ["a b", "a b"]
    assert clock.monotonic() == START_S + 12
    assert handler.outcomes[1:] == ["answered", "answered"]
    assert handler.in_flight == 0
