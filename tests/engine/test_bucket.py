"""The token bucket: its burst, its rate, and its debts."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep.bucket import TokenBucket
from tests.fakes import (
    FakeClock,
    StandingClock,
    in_threads,
)

HOUR_S = 3600.0


def bucket_tokens(bucket: TokenBucket) -> float:
    """How many tokens there are, by what it would take to get them all."""
    return bucket.rate - bucket.drain_time(bucket.rate) * bucket.rate / bucket.per_seconds


def test_a_bucket_starts_full_and_gives_a_burst_of_its_size() -> None:
    bucket = TokenBucket(5, clock=FakeClock())
    assert [bucket.acquire() for _ in range(6)] == [True] * 5 + [False]


def test_a_refused_acquire_takes_nothing() -> None:
    bucket = TokenBucket(5, clock=FakeClock())
    bucket.acquire(3)
    assert not bucket.acquire(3)
    assert bucket.acquire(2)


def test_a_bucket_refills_at_its_steady_rate() -> None:
    clock = FakeClock()
    bucket = TokenBucket(60, clock=clock)
    bucket.acquire(60)
    clock.sleep(0.5)
    assert not bucket.acquire()
    clock.sleep(0.5)
    assert bucket.acquire()


def test_a_bucket_never_holds_more_than_its_size() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10, clock=clock)
    clock.sleep(HOUR_S)
    assert not bucket.acquire(9) or not bucket.acquire(2)


def test_the_refill_period_may_differ_from_a_minute() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10, per_seconds=1.0, clock=clock)
    bucket.acquire(10)
    assert bucket.wait_time(5) == pytest.approx(0.5)


def test_wait_time_is_zero_when_the_tokens_are_there() -> None:
    bucket = TokenBucket(10, clock=FakeClock())
    assert bucket.wait_time(10) == 0.0


def test_wait_time_says_exactly_when_the_tokens_will_be_there() -> None:
    clock = FakeClock()
    bucket = TokenBucket(60, clock=clock)
    bucket.acquire(58)
    assert bucket.wait_time(5) == pytest.approx(3.0)
    assert bucket_tokens(bucket) == pytest.approx(2.0)


def test_a_call_larger_than_the_bucket_goes_when_it_is_full_and_leaves_a_debt() -> None:
    clock = FakeClock()
    bucket = TokenBucket(60, clock=clock)
    bucket.acquire(30)
    assert not bucket.acquire(100)
    assert bucket.wait_time(100) == pytest.approx(30.0)
    clock.sleep(30.0)
    assert bucket.acquire(100)
    assert bucket.wait_time(1) == pytest.approx(41.0)


def test_settling_puts_back_at_most_to_the_brim() -> None:
    bucket = TokenBucket(10, clock=FakeClock())
    bucket.acquire(3)
    bucket.settle(1000)
    assert bucket_tokens(bucket) == pytest.approx(10)


def test_settling_may_put_a_bucket_into_debt() -> None:
    bucket = TokenBucket(60, clock=FakeClock())
    bucket.settle(-90)
    assert bucket.wait_time(1) == pytest.approx(31.0)


def test_a_resized_bucket_remembers_what_was_taken() -> None:
    bucket = TokenBucket(60, clock=FakeClock())
    bucket.acquire(50)
    bucket.resize(100)
    assert bucket_tokens(bucket) == pytest.approx(50)
    bucket.resize(20)
    assert bucket.wait_time(1) == pytest.approx((30 + 1) * 3)


@pytest.mark.parametrize("rate", [0, -1, math.nan, -math.inf])
def test_a_bucket_needs_a_positive_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate, clock=FakeClock())


@pytest.mark.parametrize("amount", [math.nan, -1.0])
def test_an_amount_that_is_no_amount_leaves_the_bucket_unharmed(amount: float) -> None:
    bucket = TokenBucket(10, clock=FakeClock())
    with contextlib.suppress(ValueError):
        bucket.acquire(amount)
    assert bucket_tokens(bucket) <= 10
    assert [bucket.acquire(6), bucket.acquire(6)] == [True, False]


@given(
    rate=st.floats(0.5, 1000),
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 2000)), max_size=40),
)
def test_no_window_admits_more_than_a_burst_and_the_rate(
    rate: float, steps: list[tuple[float, float]]
) -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate, clock=clock)
    taken: list[tuple[float, float]] = []
    for pause_s, amount in steps:
        clock.sleep(pause_s)
        if amount <= rate and bucket.acquire(amount):
            taken.append((clock.monotonic(), amount))
    for first, (begin_s, _) in enumerate(taken):
        total = 0.0
        for end_s, amount in taken[first:]:
            total += amount
            assert total <= rate + (end_s - begin_s) * rate / 60 + 1e-6


@given(rate=st.floats(0.5, 1000), amounts=st.lists(st.floats(0.01, 3000), max_size=20))
def test_after_its_wait_time_an_amount_is_always_there(rate: float, amounts: list[float]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate, clock=clock)
    for amount in amounts:
        clock.sleep(bucket.wait_time(amount))
        assert bucket.acquire(amount)


def test_a_hundred_threads_get_exactly_the_tokens_that_there_are() -> None:
    bucket = TokenBucket(60, clock=StandingClock())
    assert sum(in_threads(100, lambda _: bucket.acquire())) == 60
