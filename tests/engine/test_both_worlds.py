"""What is claimed of many callers at once, with threads of the operating system.

``test_under_gevent.py`` runs this file once more in a process that gevent has patched, where the
same threads are greenlets, as in the plugin.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from holysheep.breaker import BreakerLayer, CircuitBreaker
from holysheep.budget import BudgetLayer
from holysheep.cache import CacheLayer, MemoryCache, StaleCover, identity_of
from holysheep.concurrency import ConcurrencyLayer
from holysheep.engine import stack
from holysheep.errors import BudgetExceeded, RateLimited, ServerError
from holysheep.fair import FairSemaphore
from holysheep.ledger import Ledger
from holysheep.limiter import RateLimiter
from holysheep.pacing import paced_text
from holysheep.ports import SystemClock, spawn_thread
from holysheep.pricing import PriceBook
from holysheep.ratelimit import RateLimitLayer
from holysheep.retry import RetryLayer
from holysheep.singleflight import Flights, SingleFlightLayer
from holysheep.types import Call, Completed, Delta, Event
from tests.fakes import (
    a_call,
    a_completion,
    a_purse,
    a_request,
    answered,
    in_threads,
    kinds,
    text_of,
)

CALLERS = 100


class WatchedClock(SystemClock):
    """The system's clock, which knows how many callers wait at a moment."""

    def __init__(self) -> None:
        super().__init__()
        self._make_condition = self.condition
        self._guard = threading.Lock()
        self._waiting = 0
        self._enough = threading.Event()
        self._wanted = -1
        self.condition = lambda: _WatchedCondition(self, self._make_condition())  # type: ignore[assignment]

    def count(self, change: int) -> None:
        with self._guard:
            self._waiting += change
            if self._waiting == self._wanted:
                self._enough.set()

    def until_waiting(self, callers: int) -> None:
        """Return when so many callers wait at the same time."""
        with self._guard:
            self._wanted = callers
            if self._waiting == callers:
                return
        assert self._enough.wait(20)


class _WatchedCondition:
    def __init__(self, clock: WatchedClock, condition: Any) -> None:
        self._clock = clock
        self._condition = condition
        self.notify_all = condition.notify_all

    def __enter__(self) -> object:
        return self._condition.__enter__()

    def __exit__(self, *error: object) -> None:
        self._condition.__exit__(*error)

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.count(1)
        try:
            return bool(self._condition.wait(timeout))
        finally:
            self._clock.count(-1)


class Gateway:
    """A bottom of the stack that counts, and answers when it is let."""

    def __init__(self, answer: list[Any] | None = None) -> None:
        self._answer = answer or answered("one two three")
        self._lock = threading.Lock()
        self.go_on = threading.Event()
        self.go_on.set()
        self.calls = 0
        self.in_flight = 0
        self.max_in_flight = 0

    def __call__(self, call: Call) -> Iterator[Event]:
        with self._lock:
            self.calls += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            for event in self._answer:
                assert self.go_on.wait(20)
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            with self._lock:
                self.in_flight -= 1


def test_a_hundred_identical_calls_make_one_upstream_call() -> None:
    clock = WatchedClock()
    gateway = Gateway()
    gateway.go_on.clear()
    flights = Flights(clock)
    layer = SingleFlightLayer(flights, identity_of)

    def starter(number: int) -> str:
        if number == CALLERS:
            clock.until_waiting(CALLERS - 1)
            gateway.go_on.set()
            return ""
        return text_of(layer(a_call(clock), gateway))

    outcomes = in_threads(CALLERS + 1, starter)
    assert outcomes[:CALLERS] == ["one two three"] * CALLERS
    assert gateway.calls == 1
    assert len(flights) == 0


def test_a_failure_of_the_one_upstream_call_reaches_a_hundred_callers() -> None:
    clock = WatchedClock()
    gateway = Gateway([ServerError("down")])
    gateway.go_on.clear()
    layer = SingleFlightLayer(Flights(clock), identity_of)

    def starter(number: int) -> str:
        if number == CALLERS:
            clock.until_waiting(CALLERS - 1)
            gateway.go_on.set()
            return ""
        return text_of(layer(a_call(clock), gateway))

    outcomes = in_threads(CALLERS + 1, starter)
    assert kinds(outcomes) == {"ServerError": CALLERS, "str": 1}
    assert gateway.calls == 1


def test_when_the_first_caller_leaves_the_others_get_the_rest_of_the_same_answer() -> None:
    clock = SystemClock()
    layer = SingleFlightLayer(Flights(clock), identity_of)
    gateway = Gateway()
    first = layer(a_call(clock), gateway)
    next(first)
    gateway.go_on.clear()
    joined = threading.Semaphore(0)

    def caller(number: int) -> str:
        if number == 10:
            for _ in range(10):
                assert joined.acquire(timeout=20)
            first.close()  # type: ignore[attr-defined]
            gateway.go_on.set()
            return ""
        events = layer(a_call(clock), gateway)
        beginning = next(events)
        joined.release()
        return text_of([beginning, *events])

    assert in_threads(11, caller)[:10] == ["one two three"] * 10
    assert gateway.calls == 1


def test_a_half_open_breaker_admits_one_of_a_hundred() -> None:
    clock = SystemClock()
    breaker = CircuitBreaker(clock=clock, open_s=0.0)
    layer = BreakerLayer(lambda _: breaker)
    for _ in range(5):
        with pytest.raises(ServerError):
            list(layer(a_call(clock), Gateway([ServerError("down")])))
    gateway = Gateway()
    gateway.go_on.clear()
    refused = threading.Semaphore(0)

    def caller(number: int) -> str:
        if number == CALLERS:
            for _ in range(CALLERS - 1):
                assert refused.acquire(timeout=20)
            gateway.go_on.set()
            return ""
        try:
            return text_of(layer(a_call(clock), gateway))
        finally:
            refused.release()

    assert kinds(in_threads(CALLERS + 1, caller)) == {"CircuitOpen": CALLERS - 1, "str": 2}
    assert gateway.calls == 1
    assert breaker.state == "closed"


def test_no_more_calls_are_in_flight_than_there_are_slots() -> None:
    clock = SystemClock()
    slots = FairSemaphore(7, clock)
    layer = ConcurrencyLayer(slots, clock)
    gateway = Gateway()
    outcomes = in_threads(
        CALLERS, lambda _: [text_of(layer(a_call(clock), gateway)) for _ in "abc"]
    )
    assert outcomes == [["one two three"] * 3] * CALLERS
    assert gateway.max_in_flight <= 7
    assert (gateway.calls, slots.held) == (3 * CALLERS, 0)


def test_a_burst_admits_exactly_the_calls_of_a_minute() -> None:
    clock = SystemClock()
    layer = RateLimitLayer(RateLimiter(6, 0, clock=clock), clock)
    gateway = Gateway()
    outcomes = in_threads(CALLERS, lambda _: text_of(layer(a_call(clock, timeout_s=1.0), gateway)))
    assert kinds(outcomes) == {"str": 6, "LimiterTimeout": CALLERS - 6}
    assert gateway.calls == 6


def test_those_who_wait_for_the_rate_are_all_served_and_not_before_their_time() -> None:
    clock = SystemClock()
    began_s = clock.monotonic()
    layer = RateLimitLayer(RateLimiter(2400, 0, clock=clock), clock)
    gateway = Gateway()

    def caller(_: int) -> list[str]:
        return [text_of(layer(a_call(clock), gateway)) for _ in range(121)]

    assert kinds(in_threads(20, caller)) == {"list": 20}
    assert gateway.calls == 2420
    assert clock.monotonic() - began_s >= (2420 - 2400) / 40 - 1e-3


def test_after_a_pause_one_call_of_fifty_goes_first() -> None:
    clock = WatchedClock()
    limiter = RateLimiter(0, 0, clock=clock)
    layer = RateLimitLayer(limiter, clock)
    with pytest.raises(RateLimited):
        list(layer(a_call(clock), Gateway([RateLimited("full", retry_after_s=0.05)])))
    gateway = Gateway()
    gateway.go_on.clear()

    def caller(number: int) -> str:
        if number == 50:
            while not gateway.calls:
                clock.sleep(0.001)
            clock.until_waiting(49)
            assert gateway.calls == 1
            gateway.go_on.set()
            return ""
        return text_of(layer(a_call(clock), gateway))

    assert kinds(in_threads(51, caller)) == {"str": 51}
    assert gateway.calls == 50


def test_a_budget_is_not_overspent_by_a_hundred_calls() -> None:
    clock = SystemClock()
    purse = a_purse(Ledger(clock, spawn_thread), Decimal("0.004"))
    layer = BudgetLayer(PriceBook())
    gateway = Gateway()
    outcomes = in_threads(CALLERS, lambda _: text_of(layer(a_call(clock, purse=purse), gateway)))
    assert kinds(outcomes).keys() == {"str", "BudgetExceeded"}
    cost = PriceBook().cost(a_completion()).usd
    assert cost is not None
    assert gateway.calls * cost <= Decimal("0.004")
    with pytest.raises(BudgetExceeded):
        purse.hold(Decimal("0.004"))


def test_callers_of_a_few_questions_make_a_few_upstream_calls() -> None:
    clock = SystemClock()
    cache = MemoryCache(clock)
    shelf = cache.shelf("me")
    gateway = Gateway()
    answer = stack(
        [
            StaleCover(shelf),
            SingleFlightLayer(Flights(clock), identity_of),
            CacheLayer(shelf, clock),
            RetryLayer(clock, lambda: 0.0),
            RateLimitLayer(RateLimiter(0, 0, clock=clock), clock),
            ConcurrencyLayer(FairSemaphore(3, clock), clock),
        ],
        gateway,
    )

    def caller(number: int) -> list[str]:
        requests = [a_request(f"question {(number + step) % 10}") for step in range(10)]
        return [text_of(answer(a_call(clock, request))) for request in requests]

    assert in_threads(CALLERS, caller) == [["one two three"] * 10] * CALLERS
    assert gateway.calls == 10
    assert len(cache) == 10


def test_paced_text_is_complete_with_threads_of_all_kinds() -> None:
    clock = SystemClock()

    def spawn(work: Any) -> None:
        threading.Thread(target=work, daemon=True).start()

    def reader(number: int) -> str:
        words = (Delta(f"{number}.{word} ") for word in range(200))
        return "".join(paced_text(words, clock=clock, spawn=spawn, interval_s=0.001))

    texts = in_threads(20, reader)
    assert texts == ["".join(f"{number}.{word} " for word in range(200)) for number in range(20)]


def test_a_hundred_readers_of_one_stream_get_all_of_it_in_order() -> None:
    clock = SystemClock()
    words = [Delta(f"{word} ") for word in range(300)]
    text = text_of(words)
    gateway = Gateway([*words, Completed(a_completion(text))])
    layer = SingleFlightLayer(Flights(clock), identity_of)
    texts = in_threads(CALLERS, lambda _: text_of(layer(a_call(clock), gateway)))
    assert Counter(texts) == {text: CALLERS}
